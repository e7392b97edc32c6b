import BlockCore
import QCOW2Codec
package import QCOW2Format
import Synchronization

/// An open qcow2 image: guest requests in, host I/O out, from any number of workers at once.
///
/// Workers share the L1 table, the slice caches, the allocator, the in-flight table and the flush
/// coordinator; each has an arena of host clusters of its own. Lock order: flush round → in-flight
/// stripe → slice stripe → leaf; no lock is held across I/O.
package final class Image: BlockTarget {
  package let geometry: ClusterGeometry
  /// The header as it was when the image was opened.
  package let header: Header
  package let options: ImageOptions
  let storage: ImageStorage
  let rules: EntryRules
  let guestData: GuestData
  let backing: (any BackingLayer)?
  let contexts: WorkerContexts
  let packer: CompressedPacker
  /// Changes before the place of a released compressed cluster can be used anew.
  let compressedGeneration = Atomic<UInt64>(0)
  /// What host transfers call the file with the guest's data; -1 keeps requests off the hit path.
  let planFile: Int
  let hits: HitMap
  let readahead = Readahead()
  let mapping: Mapping
  let allocator: ClusterAllocator
  let arenas: WorkerArenas
  let metadata: MetadataMap
  let frees: DeferredFrees
  let stamps: RequestStamps
  let gate = RequestGate()
  /// Held by whoever resizes the disk or moves VM state.
  let administration = AsyncMutex()
  /// Held by whoever closes the gate; taken after ``administration``.
  let exclusion = AsyncMutex()
  let longJobs: JobSlots
  let shortJobs: JobSlots
  /// The virtual size in bytes; changes only while the gate is shut.
  let currentSize: Atomic<UInt64>
  let health: ImageHealth
  let flusher: FlushCoordinator
  let headerEditor: HeaderEditor
  /// Keeps the persistent bitmaps; nil if there are none to keep.
  let changes: ChangeTracker?
  /// What became of the persistent bitmaps.
  package let bitmaps: BitmapReport
  /// Writes of the hit path into new clusters.
  let fresh: FreshWrites
  let maturing = AsyncMutex()
  /// Zeros to write from.
  let zeroes = IOBuffer(count: 64 << 10)
  /// When the oldest change not yet written back was made, in milliseconds; 0 when there is none.
  let dirtySince = Atomic<UInt64>(0)

  var slices: SliceGeometry { mapping.slices }
  var inFlight: InFlightRanges { mapping.inFlight }
  var tables: L2Tables { mapping.tables }
  var l2: SliceCache { mapping.tables.cache }

  init(_ parts: ImageParts) {
    geometry = parts.header.geometry
    header = parts.header
    options = parts.options
    storage = parts.storage
    rules = EntryRules(header)
    guestData = parts.guestData
    backing = parts.sources.backing
    planFile =
      parts.guestData.isTransformed ? -1 : parts.sources.fileNumber.map { Int($0) } ?? -1
    let firstShort = options.workers + JobSlots.longCount
    let workers = firstShort + JobSlots.shortCount
    longJobs = JobSlots(workers: options.workers..<firstShort)
    shortJobs = JobSlots(workers: firstShort..<workers)
    contexts = WorkerContexts(
      workers: workers,
      kind: CompressionKind(rawValue: header.compressionType) ?? .zlib,
      clusterSize: Int(geometry.clusterSize))
    allocator = parts.allocator
    metadata = parts.metadata
    frees = parts.frees
    headerEditor = parts.headerEditor
    health = parts.storage.health
    currentSize = Atomic(parts.header.size & ~511)
    stamps = RequestStamps(workers: workers, slotsPerWorker: options.slotsPerWorker)
    fresh = FreshWrites(workers: workers, slotsPerWorker: options.slotsPerWorker)
    packer = CompressedPacker(
      allocator: allocator, alignment: storage.file.traits.offsetAlignment)
    arenas = WorkerArenas(
      workers: workers, clusterSize: geometry.clusterSize, allocator: allocator)
    let l1 = ActiveL1(parts.l1)
    let tables = L2Tables(
      l1: l1, cache: parts.l2, geometry: geometry, storage: storage, arenas: arenas,
      metadata: metadata, frees: frees)
    flusher = FlushCoordinator(
      storage: storage, externalData: guestData.isExternal ? guestData.storage : nil,
      splitsEntries: rules.isExtended, l1: l1, l2: parts.l2, refcounts: allocator.refcounts,
      arenas: arenas, frees: frees,
      stamps: stamps, health: health,
      lazy: parts.hasLazyRefcounts ? LazyRefcounts(editor: parts.headerEditor) : nil)
    mapping = Mapping(
      rules, tables: tables, metadata: metadata, storage: storage, flusher: flusher)
    changes = parts.bitmaps.isEmpty ? nil : ChangeTracker(parts.bitmaps, parts, flusher)
    bitmaps = parts.bitmapReport
    hits = HitMap(
      mapping, planFile: planFile,
      allowsWrites: !options.readOnly && !options.compressesWrites && parts.bitmaps.isEmpty)
    let flusher = self.flusher
    // Weak: the coordinator leads back to the allocator, by way of the arenas.
    allocator.makeRoom = { [weak flusher] () async throws(ImageError) in
      try await flusher?.flush()
    }
  }

  /// The virtual size in bytes, down to whole 512-byte sectors.
  package var size: UInt64 { currentSize.load(ordering: .relaxed) }

  /// Makes durable every write that completed before the call.
  package func flush() async throws(ImageError) {
    if options.readOnly { return }
    dirtySince.store(0, ordering: .relaxed)
    do { try await flusher.flushLazily() } catch {
      // Still dirty: the background round must try again.
      noteDirty()
      throw error
    }
    noteSpaceFound(by: .flush)
  }

  /// One step of background work: writes back what has been dirty for too long, then returns freed
  /// clusters to the allocator.
  ///
  /// Failures stick in the image's health and show in the next flush.
  package func maintain() async {
    if options.readOnly || health.hasLostSync { return }
    let since = dirtySince.load(ordering: .relaxed)
    let age = UInt64(options.dirtyAgeMilliseconds)
    if since != 0 && MonotonicClock.coarseMilliseconds() &- since >= age {
      do { try await flush() } catch { await report(error, of: BlockRequest(.flush)) }
    }
    if health.isCorrupt { return }
    if maturing.tryAcquire() {
      defer { maturing.release() }
      _ = try? await returnMatureClusters()
    }
    await changes?.maintain()
    let rounds = flusher.rounds.load(ordering: .relaxed)
    if let lazy = flusher.lazy, dirtySince.load(ordering: .relaxed) == 0,
      lazy.isWorthClearing(rounds: rounds, now: MonotonicClock.coarseMilliseconds())
    {
      try? await flusher.clean()
    }
  }

  /// Writes everything back and gives reserved and freed clusters up; no request may be running.
  ///
  /// - Throws: the first failure; the image is then as after a crash: leaks at worst.
  package func close() async throws(ImageError) {
    if options.readOnly { return }
    // What was changed before corruption was found is still to be kept; nothing else is touched then.
    if health.isCorrupt { return try await flusher.flush() }
    // After a failed sync the file stays as it is.
    try health.requireWriteBack()
    // First, since a full host may need the room to write back what was changed. Its failure must not
    // keep that from being written.
    var failure: ImageError?
    do { try await arenas.returnAll() } catch { failure = error }
    try await flush()
    if let failure { throw failure }
    try await changes?.finish()
    await maturing.acquire()
    defer { maturing.release() }
    // One pass makes what is pending durable, the next returns it. Bounded: what is still held
    // after that stays leaked, which is better than a close that does not end.
    for _ in 0..<4 where !frees.isEmpty {
      try await returnMatureClusters()
      try await flusher.flush()
    }
    try await packer.close()
    try await flusher.clean()
    await allocator.cutFile()
  }

  /// Makes clusters that were freed allocatable, and looks for room that has been added.
  ///
  /// Call without a request of one's own in flight: it would hold back what was freed after it
  /// began.
  ///
  /// - Returns: whether it is worth trying again.
  func reclaimSpace() async throws(ImageError) -> Bool {
    if try await allocator.noteGrowth() { return true }
    guard !frees.isEmpty else { return false }
    try await flush()
    await maturing.acquire()
    defer { maturing.release() }
    return try await returnMatureClusters()
  }

  /// Notes that some table in memory is ahead of the host file.
  func noteDirty() {
    if dirtySince.load(ordering: .relaxed) == 0 {
      dirtySince.store(MonotonicClock.coarseMilliseconds(), ordering: .relaxed)
    }
  }

  /// - Returns: whether there were any.
  @discardableResult
  private func returnMatureClusters() async throws(ImageError) -> Bool {
    let mature = frees.takeMature(before: stamps.oldest())
    var done = 0
    if !mature.isEmpty {
      compressedGeneration.wrappingAdd(1, ordering: .acquiringAndReleasing)
    }
    do {
      for run in mature {
        try await allocator.release(run, punch: options.discardsToHost)
        done += 1
      }
    } catch {
      // What was half released stays leaked: counting it down twice would be worse.
      frees.restoreMature(Array(mature[min(done + 1, mature.count)...]))
      await report(error)
      throw error
    }
    if !mature.isEmpty { noteDirty() }
    return !mature.isEmpty
  }
}
