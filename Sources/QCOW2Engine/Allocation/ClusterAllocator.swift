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
  var cursor: UInt64 = 0
  /// Host clusters from here on were never written, and read as zeros.
  var freshFrom: UInt64
  /// New clusters of a block device may be cleared, which may unmap them, as discards do.
  private let clears: Bool
  /// Clusters that a block device has room for; nil for a file that can grow.
  private(set) var limit: UInt64?
  /// Clusters reserved and given back since the image was opened; for statistics.
  let reserved = Atomic<UInt64>(0)
  let returned = Atomic<UInt64>(0)

  init(
    refcounts: RefcountStore, storage: ImageStorage, metadata: MetadataMap,
    headerEditor: HeaderEditor, frees: DeferredFrees, fileLength: UInt64, clears: Bool
  ) {
    self.refcounts = refcounts
    self.storage = storage
    self.metadata = metadata
    self.headerEditor = headerEditor
    self.frees = frees
    let geometry = refcounts.geometry
    let isDevice = storage.file.traits.isBlockDevice
    self.clears = clears && isDevice
    freshFrom =
      isDevice
      ? UInt64.max : max(geometry.clusters(covering: fileLength), metadata.endOfMapped)
    limit = isDevice ? fileLength >> UInt64(geometry.clusterBits) : nil
  }

  var geometry: ClusterGeometry { refcounts.geometry }

  /// Reserves 1 to `wanted` contiguous host clusters with a refcount of 1.
  ///
  /// - Throws: ``ImageError/noSpace`` if there is none and the file cannot grow;
  ///   ``ImageError/overlapsMetadata(cluster:)`` if a cluster in use has refcount zero.
  func reserve(upTo wanted: UInt64) async throws(ImageError) -> ClusterRun {
    await mutex.acquire()
    defer { mutex.release() }
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
  private func reserve(at: UInt64, upTo wanted: UInt64) async throws(ImageError) -> ClusterRun? {
    if let limit, at >= limit { throw .noSpace }
    if at >= FormatLimit.hostOffset >> UInt64(geometry.clusterBits) { throw .noSpace }
    try await ensureBlock(for: at)
    let run = try await reserveInSlice(from: at, upTo: wanted)
    if let run { reserved.wrappingAdd(run.count, ordering: .relaxed) }
    return run
  }

  private func reserveInSlice(
    from first: UInt64, upTo wanted: UInt64
  ) async throws(ImageError) -> ClusterRun? {
    var end = refcounts.sliceRange(of: first).upperBound
    if let limit { end = min(end, limit) }
    let fresh = freshFrom
    let order = geometry.refcountOrder
    let found = try unsafe await withSlice(of: first) { [refcounts] bytes in
      let free = unsafe Self.firstFree(
        bytes, order: order, from: first, to: end, upTo: wanted, fresh: fresh, refcounts)
      for cluster in free {
        unsafe RefcountWidth.set(
          bytes, order: order, index: refcounts.indexInSlice(cluster), value: 1)
      }
      return (free, !free.isEmpty)
    }
    if found.isEmpty { return nil }
    if let overlap = metadata.firstOverlap(found) { throw .overlapsMetadata(cluster: overlap) }
    var isFresh = found.lowerBound >= fresh
    if isFresh {
      freshFrom = found.upperBound
      do throws(ImageError) { try await extendFile(over: found) } catch {
        // Still beyond the end: whoever gets them is to extend the file first.
        freshFrom = fresh
        throw error
      }
    } else if clears {
      isFresh = await clear(found)
    }
    return ClusterRun(
      start: found.lowerBound, count: UInt64(found.count), isFresh: isFresh)
  }

  /// Makes reserved clusters of a block device read as zeros, where that costs one command, so that
  /// what a write leaves of its cluster need not be written.
  ///
  /// They were free: a pointer to any of them, if there was one, was durably removed before.
  private func clear(_ run: Range<UInt64>) async -> Bool {
    await storage.file.clear(
      at: geometry.start(ofHostCluster: run.lowerBound),
      length: UInt64(run.count) << UInt64(geometry.clusterBits))
  }

  /// Grows the file over a reserved run, with storage: later writes into it then need neither a
  /// change of length nor an allocation by the host, which file systems serialise.
  ///
  /// One owner does this, in steps of a whole run.
  private func extendFile(over run: Range<UInt64>) async throws(ImageError) {
    let start = geometry.start(ofHostCluster: run.lowerBound)
    let length = UInt64(run.count) << UInt64(geometry.clusterBits)
    do { try await storage.reserve(at: start, length: length) } catch {
      try? await decrement(run)
      throw error
    }
  }

  /// Makes the file reach to the end of `cluster`.
  ///
  /// Never shortens it: in a file that was cut there may be data beyond its end, and beyond the
  /// clusters that have a refcount, which is being written at this very moment.
  func growFile(over cluster: UInt64) async throws(ImageError) {
    try await storage.extend(to: geometry.start(ofHostCluster: cluster + 1).bytes)
  }

  /// The first run of zero refcounts; a run never mixes fresh and used clusters.
  private static func firstFree(
    _ bytes: UnsafeMutableRawPointer, order: Int, from first: UInt64, to end: UInt64,
    upTo wanted: UInt64, fresh: UInt64, _ refcounts: RefcountStore
  ) -> Range<UInt64> {
    func isFree(_ cluster: UInt64) -> Bool {
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
    let clusters = try await storage.length() >> UInt64(geometry.clusterBits)
    await mutex.acquire()
    defer { mutex.release() }
    guard let old = limit, clusters > old else { return false }
    limit = clusters
    cursor = min(cursor, old)
    return true
  }

  /// Adds a reference to a cluster in use.
  ///
  /// - Returns: false if its refcount can go no higher.
  func addReference(_ cluster: UInt64) async throws(ImageError) -> Bool {
    await mutex.acquire()
    defer { mutex.release() }
    let order = geometry.refcountOrder
    let most = geometry.maxRefcount
    let before = try unsafe await withSlice(of: cluster) { [refcounts] bytes in
      let index = refcounts.indexInSlice(cluster)
      let value = unsafe RefcountWidth.get(bytes, order: order, index: index)
      if value == 0 || value == most { return (value, false) }
      unsafe RefcountWidth.set(bytes, order: order, index: index, value: value + 1)
      return (value, true)
    }
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
  /// - Throws: ``ImageError/overlapsMetadata(cluster:)`` before anything is done to clusters that
  ///   metadata uses, whatever else referred to them.
  func release(_ run: ClusterRun, punch: Bool) async throws(ImageError) {
    if let overlap = metadata.firstOverlap(run.start..<run.end) {
      throw .overlapsMetadata(cluster: overlap)
    }
    var next = run.start
    while next < run.end {
      let part = next..<min(refcounts.sliceRange(of: next).upperBound, run.end)
      try await releaseInSlice(part, punch: punch)
      next = part.upperBound
    }
  }

  private func releaseInSlice(_ part: Range<UInt64>, punch: Bool) async throws(ImageError) {
    if punch {
      for run in try await lastReferences(part) {
        await storage.punchHole(
          at: geometry.start(ofHostCluster: run.lowerBound),
          length: UInt64(run.count) << UInt64(geometry.clusterBits))
      }
    }
    await mutex.acquire()
    defer { mutex.release() }
    try await decrement(part)
    returned.wrappingAdd(UInt64(part.count), ordering: .relaxed)
  }

  /// The runs in `part` whose refcount is exactly one: they become free next.
  private func lastReferences(_ part: Range<UInt64>) async throws(ImageError) -> [Range<UInt64>] {
    let order = geometry.refcountOrder
    return try unsafe await withSlice(of: part.lowerBound) { [refcounts] bytes in
      var runs: [Range<UInt64>] = []
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
      return (runs, false)
    }
  }

  /// Lowers refcounts; call with `mutex` held.
  func decrement(_ clusters: Range<UInt64>) async throws(ImageError) {
    let order = geometry.refcountOrder
    var next = clusters.lowerBound
    while next < clusters.upperBound {
      let part = next..<min(refcounts.sliceRange(of: next).upperBound, clusters.upperBound)
      let bad = try unsafe await withSlice(of: next) { [refcounts] bytes in
        for cluster in part {
          let index = refcounts.indexInSlice(cluster)
          let value = unsafe RefcountWidth.get(bytes, order: order, index: index)
          if value == 0 { return (cluster as UInt64?, true) }
          unsafe RefcountWidth.set(bytes, order: order, index: index, value: value - 1)
        }
        return (nil, true)
      }
      if let bad { throw .refcountRange(cluster: bad) }
      cursor = min(cursor, part.lowerBound)
      next = part.upperBound
    }
  }

  /// The refcount of a host cluster; 0 where no block covers it.
  func refcount(of cluster: UInt64) async throws(ImageError) -> UInt64 {
    guard try refcounts.sliceKey(of: cluster) != nil else { return 0 }
    let order = geometry.refcountOrder
    return try unsafe await withSlice(of: cluster) { [refcounts] bytes in
      unsafe (RefcountWidth.get(bytes, order: order, index: refcounts.indexInSlice(cluster)), false)
    }
  }

  /// Throws if a host cluster that is about to lose a reference has none: it could have been handed
  /// out anew by the time that the reference is taken away.
  func requireInUse(_ cluster: UInt64) async throws(ImageError) {
    if try await refcount(of: cluster) == 0 { throw .refcountRange(cluster: cluster) }
  }

  func withSlice<R>(
    of cluster: UInt64, _ body: (UnsafeMutableRawPointer) -> (R, changed: Bool)
  ) async throws(ImageError) -> R {
    guard let key = try refcounts.sliceKey(of: cluster) else {
      throw .refcountRange(cluster: cluster)
    }
    return try unsafe await refcounts.cache.withSlice(
      key, storage: storage, makeRoom: makeRoom, body)
  }
}
