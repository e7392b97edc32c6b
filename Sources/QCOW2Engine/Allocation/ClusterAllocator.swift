import BlockCore
import QCOW2Format
import Synchronization

/// Hands out host clusters and takes them back; the only writer of refcounts.
///
/// A reservation sets refcounts to one in memory; the flush order brings them to the host file
/// before any pointer to the clusters. A crash in between leaks clusters and never leaves an entry
/// that refers to a free one. First fit from a low watermark, so that freed space is reused.
///
/// Locks: `mutex` is held across I/O on refcount blocks only; no request holds it while it waits for
/// anything else.
final class ClusterAllocator: @unchecked Sendable {  // why: `mutex` guards all mutable state
  let refcounts: RefcountStore
  let storage: ImageStorage
  let metadata: MetadataMap
  let headerEditor: HeaderEditor
  let frees: DeferredFrees
  /// Writes back a round when the refcount cache is full of dirty slices.
  var makeRoom: @Sendable () async throws(ImageError) -> Void = {}
  let mutex = AsyncMutex()
  /// The most slices of refcounts that one reservation looks through before it goes to the end.
  private static let searchedSlices = 32
  /// No cluster below has refcount zero, as far as known.
  var cursor = HostCluster(0)
  /// Host clusters from here on were never written, and read as zeros; `.max` on a block device.
  var freshFrom: HostCluster
  /// What the file and the host have room for, beyond the clusters in use.
  var room: HostRoom
  /// New clusters of a block device may be cleared, which may unmap them, as discards do.
  private let clears: Bool
  /// The end of the clusters that a block device has room for; nil for a file that can grow.
  private(set) var limit: HostCluster?
  /// The host had no room for as many clusters as it was asked for, some time ago.
  let isShort = Atomic<Bool>(false)
  /// Clusters reserved and given back since the image was opened; for statistics.
  let reserved = Atomic<UInt64>(0)
  let returned = Atomic<UInt64>(0)

  init(
    refcounts: RefcountStore, storage: ImageStorage, metadata: MetadataMap,
    headerEditor: HeaderEditor, frees: DeferredFrees, tables: [Range<UInt64>],
    fileLength: UInt64, clears: Bool
  ) {
    self.refcounts = refcounts
    self.storage = storage
    self.metadata = metadata
    self.headerEditor = headerEditor
    self.frees = frees
    let geometry = refcounts.geometry
    let isDevice = storage.file.traits.isBlockDevice
    self.clears = clears && isDevice
    let end = HostCluster(geometry.clusters(covering: fileLength))
    freshFrom = isDevice ? .max : max(end, metadata.endOfMapped)
    room = HostRoom(
      tables: tables, floor: freshFrom,
      mayShrink: !isDevice && freshFrom == end)
    limit = isDevice ? geometry.hostCluster(of: HostOffset(fileLength)) : nil
  }

  var geometry: ClusterGeometry { refcounts.geometry }

  /// Reserves 1 to `wanted` contiguous host clusters with a refcount of 1.
  ///
  /// - Throws: ``ImageError/noSpace`` if there is none and the file cannot grow;
  ///   ``ImageError/overlapsMetadata(cluster:)`` if a cluster in use has refcount zero.
  func reserve(upTo wanted: UInt64) async throws(ImageError) -> ClusterRun {
    await mutex.acquire()
    defer { mutex.release() }
    try await prepare()
    for _ in 0..<Self.searchedSlices {
      let at = cursor
      if let run = try await reserve(at: at, upTo: wanted) {
        cursor = run.end
        return run
      }
      cursor = max(cursor, refcounts.sliceRange(of: at).upperBound)
    }
    return try await reserveBeyond(upTo: wanted)
  }

  /// Reserves behind all that was ever written, so that a reservation in a large full image does not
  /// wait until all of its refcounts have been looked at: the next one searches on from ``cursor``.
  ///
  /// A block device has no such place, and neither has a search that is there already.
  private func reserveBeyond(upTo wanted: UInt64) async throws(ImageError) -> ClusterRun {
    let hasEnd = cursor < freshFrom && freshFrom != .max
    var at = hasEnd ? freshFrom : cursor
    while true {
      if let run = try await reserve(at: at, upTo: wanted) {
        if !hasEnd { cursor = run.end }
        return run
      }
      at = refcounts.sliceRange(of: at).upperBound
      if !hasEnd { cursor = at }
    }
  }

  /// Reserves what is free in the slice of refcounts that has `at`, from there on; nil if nothing is.
  private func reserve(
    at: HostCluster, upTo wanted: UInt64
  ) async throws(ImageError) -> ClusterRun? {
    if let limit, at >= limit { throw .noSpace }
    if at >= geometry.endOfHostClusters { throw .noSpace }
    try await ensureBlock(for: at)
    let run = try await reserveInSlice(from: at, upTo: wanted)
    if let run { reserved.wrappingAdd(run.count, ordering: .relaxed) }
    return run
  }

  private func reserveInSlice(
    from first: HostCluster, upTo wanted: UInt64
  ) async throws(ImageError) -> ClusterRun? {
    try await provideStorage(ofBlockFor: first)
    let free = try await findFree(from: first, upTo: wanted)
    if free.isEmpty { return nil }
    if let overlap = metadata.firstOverlap(free) { throw .overlapsMetadata(cluster: overlap) }
    if free.lowerBound >= freshFrom {
      let run = free.lowerBound..<(free.lowerBound + (try await extendFile(over: free)))
      try await countOnce(run)
      return ClusterRun(start: run.lowerBound, count: UInt64(run.count), isFresh: true)
    }
    try await countOnce(free)
    let isFresh = clears ? await clear(free) : false
    return ClusterRun(start: free.lowerBound, count: UInt64(free.count), isFresh: isFresh)
  }

  /// The first free clusters in the slice of refcounts that has `first`, from there on.
  private func findFree(
    from first: HostCluster, upTo wanted: UInt64
  ) async throws(ImageError) -> Range<HostCluster> {
    var end = refcounts.sliceRange(of: first).upperBound
    if let limit { end = min(end, limit) }
    let (fresh, order) = (freshFrom, geometry.refcountOrder)
    return try await withSlice(of: first) { [refcounts] slice in
      unsafe Self.firstFree(
        slice.bytes, order: order, from: first, to: end, upTo: wanted, fresh: fresh, refcounts)
    }
  }

  /// Makes reserved clusters of a block device read as zeros, where that costs one command, so that
  /// what a write leaves of its cluster need not be written.
  ///
  /// They were free: a pointer to any of them, if there was one, was durably removed before.
  private func clear(_ run: Range<HostCluster>) async -> Bool {
    await storage.file.clear(
      at: geometry.start(of: run.lowerBound),
      length: UInt64(run.count) << UInt64(geometry.clusterBits))
  }

  /// Makes the file reach to the end of `cluster`.
  ///
  /// Never shortens it: in a file that was cut there may be data beyond its end, and beyond the
  /// clusters that have a refcount, which is being written at this very moment.
  func growFile(over cluster: HostCluster) async throws(ImageError) {
    mutex.assertHeld()
    try await storage.extend(to: geometry.start(of: cluster + 1).bytes)
  }

  /// The first run of zero refcounts; a run never mixes fresh and used clusters.
  private static func firstFree(
    _ bytes: UnsafeRawPointer, order: Int, from first: HostCluster, to end: HostCluster,
    upTo wanted: UInt64, fresh: HostCluster, _ refcounts: RefcountStore
  ) -> Range<HostCluster> {
    func isFree(_ cluster: HostCluster) -> Bool {
      unsafe RefcountWidth.get(bytes, order: order, index: refcounts.indexInSlice(cluster)) == 0
    }
    var start = first
    while start < end && !isFree(start) { start += 1 }
    var last = start
    let stop = start < fresh ? min(end, fresh) : end
    while last < stop && last - start < wanted && isFree(last) { last += 1 }
    return start..<last
  }

  /// Looks whether the block device has become larger.
  ///
  /// - Returns: whether there are clusters to hand out that there were not before.
  func noteGrowth() async throws(ImageError) -> Bool {
    guard storage.file.traits.isBlockDevice else { return false }
    let end = geometry.hostCluster(of: HostOffset(try await storage.length()))
    await mutex.acquire()
    defer { mutex.release() }
    guard let old = limit, end > old else { return false }
    limit = end
    cursor = min(cursor, old)
    return true
  }

  /// Adds a reference to a cluster in use.
  ///
  /// - Returns: false if its refcount can go no higher.
  func addReference(_ cluster: HostCluster) async throws(ImageError) -> Bool {
    await mutex.acquire()
    defer { mutex.release() }
    let order = geometry.refcountOrder
    let most = geometry.maxRefcount
    let before = try await withSlice(of: cluster) { [refcounts] slice in
      let index = refcounts.indexInSlice(cluster)
      let value = unsafe RefcountWidth.get(slice.bytes, order: order, index: index)
      if value == 0 || value == most { return value }
      slice.setRefcount(index, order: order, to: value + 1)
      return value
    }
    frees.watch.note(cluster..<(cluster + 1))
    if before == 0 { throw .refcountRange(cluster: cluster) }
    return before < most
  }

  /// Gives reserved clusters back that no pointer ever led to.
  func unreserve(_ run: ClusterRun) async throws(ImageError) {
    if run.count == 0 { return }
    await mutex.acquire()
    defer { mutex.release() }
    try await decrement(run.start..<run.end)
    returned.wrappingAdd(run.count, ordering: .relaxed)
  }

  /// Lowers by one the refcounts of clusters whose pointer's removal is durable and that no request
  /// can still reach; punches those that nothing refers to any more, before they become free.
  ///
  /// An entry may have led beyond the end of the file, as one may after a repair. Where this session has
  /// handed nothing out and no refcount is kept, there is nothing to give back.
  ///
  /// - Throws: ``ImageError/overlapsMetadata(cluster:)`` before anything is done to clusters that
  ///   metadata uses, whatever else referred to them.
  func release(_ run: ClusterRun, punch: Bool) async throws(ImageError) {
    if let overlap = metadata.firstOverlap(run.start..<run.end) {
      throw .overlapsMetadata(cluster: overlap)
    }
    let reach = await endOfReach()
    var next = run.start
    while next < run.end {
      let isBeyond = next >= reach
      if isBeyond, try await refcount(of: next) == 0 {
        next += 1
        continue
      }
      let end = isBeyond ? next + 1 : min(run.end, reach)
      let part = next..<min(refcounts.sliceRange(of: next).upperBound, end)
      try await releaseInSlice(part, punch: punch)
      next = part.upperBound
    }
  }

  /// No cluster from there on was part of the file at open, or has been handed out.
  private func endOfReach() async -> HostCluster {
    await mutex.acquire()
    defer { mutex.release() }
    return limit ?? max(room.end, freshFrom)
  }

  private func releaseInSlice(_ part: Range<HostCluster>, punch: Bool) async throws(ImageError) {
    if punch {
      for run in try await lastReferences(part) {
        await storage.punchHole(
          at: geometry.start(of: run.lowerBound),
          length: UInt64(run.count) << UInt64(geometry.clusterBits))
      }
    }
    await mutex.acquire()
    defer { mutex.release() }
    try await decrement(part)
    returned.wrappingAdd(UInt64(part.count), ordering: .relaxed)
  }

  /// The runs in `part` whose refcount is exactly one: they become free next.
  private func lastReferences(
    _ part: Range<HostCluster>
  ) async throws(ImageError) -> [Range<HostCluster>] {
    let order = geometry.refcountOrder
    return try unsafe await lookAtSlice(of: part.lowerBound) { [refcounts] bytes in
      var runs: [Range<HostCluster>] = []
      for cluster in part
      where unsafe RefcountWidth.get(bytes, order: order, index: refcounts.indexInSlice(cluster))
        == 1
      {
        if let last = runs.last, last.upperBound == cluster {
          runs[runs.count - 1] = last.lowerBound..<(cluster + 1)
        } else {
          runs.append(cluster..<(cluster + 1))
        }
      }
      return runs
    }
  }

  /// Lowers refcounts; call with `mutex` held.
  func decrement(_ clusters: Range<HostCluster>) async throws(ImageError) {
    mutex.assertHeld()
    let order = geometry.refcountOrder
    var next = clusters.lowerBound
    while next < clusters.upperBound {
      let part = next..<min(refcounts.sliceRange(of: next).upperBound, clusters.upperBound)
      frees.watch.note(part)
      let bad = try await withSlice(of: next) {
        [refcounts, watch = frees.watch] slice -> HostCluster? in
        for cluster in part {
          let index = refcounts.indexInSlice(cluster)
          let value = unsafe RefcountWidth.get(slice.bytes, order: order, index: index)
          if value == 0 { return cluster }
          if value == 1 { watch.noteFree(cluster) }
          slice.setRefcount(index, order: order, to: value - 1)
        }
        return nil
      }
      if let bad { throw .refcountRange(cluster: bad) }
      cursor = min(cursor, part.lowerBound)
      next = part.upperBound
    }
  }

  /// The refcount of a host cluster; 0 where no block covers it.
  func refcount(of cluster: HostCluster) async throws(ImageError) -> UInt64 {
    guard try refcounts.sliceKey(of: cluster) != nil else { return 0 }
    let order = geometry.refcountOrder
    return try unsafe await lookAtSlice(of: cluster) { [refcounts] bytes in
      unsafe RefcountWidth.get(bytes, order: order, index: refcounts.indexInSlice(cluster))
    }
  }

  /// The refcount of a host cluster that is about to lose a reference; throws if it has none: it could
  /// have been handed out anew by the time that the reference is taken away.
  @discardableResult
  func requireInUse(_ cluster: HostCluster) async throws(ImageError) -> UInt64 {
    let refcount = try await refcount(of: cluster)
    if refcount == 0 { throw .refcountRange(cluster: cluster) }
    return refcount
  }

  /// Looks at refcounts without writing anything: see ``SliceCache/lookAt(_:storage:_:)``.
  private func lookAtSlice<R>(
    of cluster: HostCluster, _ body: (UnsafeRawPointer) -> R
  ) async throws(ImageError) -> R {
    guard let key = try refcounts.sliceKey(of: cluster) else {
      throw .refcountRange(cluster: cluster)
    }
    return try unsafe await refcounts.cache.lookAt(key, storage: storage, body)
  }

  /// Looks at, or changes, the slice of refcounts that has `cluster`; call with `mutex` held.
  func withSlice<R>(
    of cluster: HostCluster, _ body: (inout CachedSlice) -> R
  ) async throws(ImageError) -> R {
    mutex.assertHeld()
    guard let key = try refcounts.sliceKey(of: cluster) else {
      throw .refcountRange(cluster: cluster)
    }
    return try await refcounts.cache.withSlice(
      key, storage: storage, makeRoom: makeRoom, body)
  }
}
