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
  package let options: ImageOptions
  package let geometry: ClusterGeometry
  /// Where all metadata lies that is ahead of the host file.
  let metadataMemory: MetadataMemory
  // What the hit path asks itself; the rest is behind the parts below.
  let hits: HitMap
  let stamps: RequestStamps
  let gate: RequestGate
  let health: ImageHealth
  let fresh: FreshWrites

  let mapping: Mapping
  let admission: Admission
  let supply: ClusterSupply
  let durability: Durability
  let faults: Faults
  let reader: Reader
  let writer: Writer
  let planner: Planner
  /// Keeps the persistent bitmaps, if there are any; nil if the image is only read.
  let changes: ChangeTracker?
  /// What became of the persistent bitmaps when the image was opened.
  package let bitmaps: BitmapReport
  /// Held by whoever resizes the disk or moves VM state.
  let administration = AsyncMutex()
  /// Held by whoever closes the gate; taken after ``administration``.
  let exclusion = AsyncMutex()
  /// Held by whoever takes, deletes or applies a snapshot, from the start to the end; taken before
  /// ``exclusion``.
  let snapshotting = AsyncMutex()
  /// Whether metadata is preallocated: 0 not known yet, 1 no, 2 yes; see ``BlockStatus/isHole``.
  let sparseness = Atomic<UInt8>(0)
  /// How far the return of leaks has come.
  let leaks = LeakProgress()
  let longJobs: JobSlots
  let shortJobs: JobSlots

  init(_ parts: ImageParts) {
    let header = parts.header
    options = parts.options
    geometry = parts.header.geometry
    metadataMemory = parts.memory
    health = parts.storage.health
    bitmaps = parts.bitmapReport
    let rules = EntryRules(header)
    let firstShort = options.workers + JobSlots.longCount
    let workers = firstShort + JobSlots.shortCount
    longJobs = JobSlots(workers: options.workers..<firstShort)
    shortJobs = JobSlots(workers: firstShort..<workers)
    stamps = RequestStamps(workers: workers, slotsPerWorker: options.slotsPerWorker)
    fresh = FreshWrites(workers: workers, slotsPerWorker: options.slotsPerWorker)
    let arenas = WorkerArenas(
      workers: workers, clusterSize: geometry.clusterSize, most: options.arenaBytes,
      allocator: parts.allocator,
      records: parts.arenaRecords)
    let l1 = ActiveL1(parts.l1)
    let flusher = FlushCoordinator(
      storage: parts.storage,
      externalData: parts.guestData.isExternal ? parts.guestData.storage : nil,
      splitsEntries: rules.isExtended, l1: l1, l2: parts.l2, refcounts: parts.allocator.refcounts,
      arenas: arenas, frees: parts.frees, stamps: stamps, health: health,
      lazy: LazyRefcounts(editor: parts.headerEditor, isOn: parts.hasLazyRefcounts))
    mapping = Mapping(
      rules, size: header.size,
      tables: L2Tables(
        l1: l1, cache: parts.l2, geometry: geometry, storage: parts.storage, arenas: arenas,
        metadata: parts.metadata, frees: parts.frees,
        sharing: Sharing(hasDataFile: parts.guestData.isExternal)),
      metadata: parts.metadata, storage: parts.storage, flusher: flusher)
    admission = Admission(stamps: stamps, mapping)
    gate = admission.gate
    durability = Durability(parts, flusher)
    faults = Faults(parts, mapping)
    supply = ClusterSupply(parts, arenas: arenas, stamps: stamps, durability, faults)
    let contexts = WorkerContexts(
      workers: workers, kind: CompressionKind(rawValue: header.compressionType) ?? .zlib,
      clusterSize: Int(geometry.clusterSize))
    reader = Reader(parts, mapping, contexts)
    writer = Writer(parts, mapping, supply, durability, faults, reader)
    changes = parts.bitmapWords.map { ChangeTracker(parts, $0, flusher) }
    gate.setTracking(!parts.bitmaps.isEmpty)
    planner = Planner(
      parts, admission, supply, durability, reader, changes: changes, fresh: fresh)
    hits = HitMap(
      mapping, planFile: planner.planFile,
      allowsWrites: !options.readOnly && !options.compressesWrites && parts.bitmaps.isEmpty)
    // Weak: the coordinator leads back to the allocator, by way of the arenas.
    parts.allocator.makeRoom = { [weak flusher] () async throws(ImageError) in
      try await flusher?.flush()
    }
  }

  /// The header as it is now.
  package var header: Header { durability.headerEditor.header }

  /// The virtual size in bytes, down to whole 512-byte sectors.
  package var size: UInt64 { mapping.size }

  /// Makes durable every write that completed before the call.
  package func flush() async throws(ImageError) { try await durability.flush() }

  /// One step of background work: writes back what has been dirty for too long, then returns freed
  /// clusters to the allocator.
  ///
  /// Failures stick in the image's health and show in the next flush.
  package func maintain() async {
    if options.readOnly || health.hasLostSync { return }
    if durability.isOverdue {
      do { try await flush() } catch { await faults.report(error, of: BlockRequest(.flush)) }
    }
    if health.isCorrupt { return }
    await supply.returnMatureIfIdle()
    await changes?.maintain()
    await durability.cleanIfWorthwhile()
  }

  /// Writes everything back and gives reserved and freed clusters up; no request may be running.
  ///
  /// - Throws: the first failure; the image is then as after a crash: leaks at worst.
  package func close() async throws(ImageError) {
    if options.readOnly { return }
    let flusher = durability.flusher
    // What was changed before corruption was found is still to be kept; nothing else is touched then.
    if health.isCorrupt { return try await flusher.flush() }
    // After a failed sync the file stays as it is.
    try health.requireWriteBack()
    // First, since a full host may need the room to write back what was changed. Its failure must not
    // keep that from being written.
    var failure: ImageError?
    do { try await supply.arenas.returnAll() } catch { failure = error }
    try await flush()
    if let failure { throw failure }
    try await changes?.finish()
    try await supply.close()
  }

  /// Makes clusters that were freed allocatable, and looks for room that has been added.
  ///
  /// Call without a request of one's own in flight: it would hold back what was freed after it
  /// began.
  ///
  /// - Returns: whether it is worth trying again.
  func reclaimSpace() async throws(ImageError) -> Bool {
    if try await supply.allocator.noteGrowth() { return true }
    guard !supply.frees.isEmpty else { return false }
    try await flush()
    return try await supply.returnMature()
  }
}
