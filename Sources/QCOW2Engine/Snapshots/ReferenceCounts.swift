import BlockCore
import QCOW2Format
import Synchronization

// References that come and go by the thousand: all those in one slice of refcounts at once.

extension ClusterAllocator {
  /// Raises the refcounts of clusters in use by one each time that they are named: of all, or of none.
  ///
  /// - Throws: ``ImageError/refcountRange(cluster:)`` if one has no reference;
  ///   ``ImageError/tooManyReferences(cluster:most:)`` if one can have no more.
  func addReferences(_ clusters: [HostCluster]) async throws(ImageError) {
    await mutex.acquire()
    defer { mutex.release() }
    var next = 0
    do throws(ImageError) {
      while next < clusters.count {
        let part = neighbours(in: clusters, from: next)
        let done = try await raise(part)
        next += done
        if done < part.count { throw try await obstacle(to: part[part.startIndex + done]) }
      }
    } catch {
      for cluster in clusters.prefix(next) { try? await decrement(cluster..<(cluster + 1)) }
      throw error
    }
  }

  /// The clusters from `start` on whose refcounts are in the slice of the first one's.
  private func neighbours(in clusters: [HostCluster], from start: Int) -> ArraySlice<HostCluster> {
    let range = refcounts.sliceRange(of: clusters[start])
    var end = start + 1
    while end < clusters.count && range.contains(clusters[end]) { end += 1 }
    return clusters[start..<end]
  }

  /// Raises the refcounts of clusters in one slice, up to the first that cannot be.
  ///
  /// - Returns: How many.
  private func raise(_ part: ArraySlice<HostCluster>) async throws(ImageError) -> Int {
    let (order, most) = (geometry.refcountOrder, geometry.maxRefcount)
    return try await withSlice(of: part[part.startIndex]) {
      [refcounts, watch = frees.watch] slice in
      var done = 0
      for cluster in part {
        watch.note(cluster..<(cluster + 1))
        let index = refcounts.indexInSlice(cluster)
        let value = unsafe RefcountWidth.get(slice.bytes, order: order, index: index)
        if value == 0 || value == most { break }
        slice.setRefcount(index, order: order, to: value + 1)
        done += 1
      }
      return done
    }
  }

  private func obstacle(to cluster: HostCluster) async throws(ImageError) -> ImageError {
    try await refcount(of: cluster) == 0
      ? .refcountRange(cluster: cluster)
      : .tooManyReferences(cluster: cluster, most: geometry.maxRefcount)
  }

  /// Lowers the refcounts of clusters by one each time that they are named; unlike ``release(_:punch:)``,
  /// also of tables that others go on using.
  ///
  /// What nothing refers to any more is punched before it becomes free, if asked for.
  ///
  /// - Throws: ``ImageError/overlapsMetadata(cluster:)`` for metadata that would become free;
  ///   ``ImageError/refcountRange(cluster:)``. Those in other slices of refcounts may be done.
  func dropReferences(_ clusters: [HostCluster], punches: Bool) async throws(ImageError) {
    let sorted = clusters.sorted()
    var next = 0
    while next < sorted.count {
      let part = neighbours(in: sorted, from: next)
      next = part.endIndex
      try await drop(Self.counted(part), punches: punches)
    }
  }

  /// Sorted clusters, each once, with the number of times.
  private static func counted(
    _ clusters: ArraySlice<HostCluster>
  ) -> [(cluster: HostCluster, times: UInt64)] {
    var counted: [(cluster: HostCluster, times: UInt64)] = []
    counted.reserveCapacity(clusters.count)
    for cluster in clusters {
      if counted.last?.cluster == cluster {
        counted[counted.count - 1].times += 1
      } else {
        counted.append((cluster, 1))
      }
    }
    return counted
  }

  private func drop(
    _ clusters: [(cluster: HostCluster, times: UInt64)], punches: Bool
  ) async throws(ImageError) {
    let counts = try await refcounts(of: clusters.map(\.cluster))
    var ending: [Range<HostCluster>] = []
    for (number, (cluster, times)) in clusters.enumerated() {
      if counts[number] < times { throw .refcountRange(cluster: cluster) }
      guard counts[number] == times else { continue }
      if metadata.contains(cluster) { throw .overlapsMetadata(cluster: cluster) }
      if let last = ending.last, last.upperBound == cluster {
        ending[ending.count - 1] = last.lowerBound..<(cluster + 1)
      } else {
        ending.append(cluster..<(cluster + 1))
      }
    }
    // Nobody else refers to these, so nobody can raise their refcounts meanwhile.
    if punches {
      for run in ending {
        await storage.punchHole(
          at: geometry.start(of: run.lowerBound),
          length: UInt64(run.count) << UInt64(geometry.clusterBits))
      }
    }
    try await lower(clusters)
    returned.wrappingAdd(ending.reduce(0) { $0 + UInt64($1.count) }, ordering: .relaxed)
  }

  private func lower(
    _ clusters: [(cluster: HostCluster, times: UInt64)]
  ) async throws(ImageError) {
    guard let first = clusters.first else { return }
    await mutex.acquire()
    defer { mutex.release() }
    let order = geometry.refcountOrder
    let bad = try await withSlice(of: first.cluster) {
      [refcounts, watch = frees.watch] slice -> HostCluster? in
      for (cluster, times) in clusters {
        watch.note(cluster..<(cluster + 1))
        let index = refcounts.indexInSlice(cluster)
        let value = unsafe RefcountWidth.get(slice.bytes, order: order, index: index)
        // The guest may have given up its reference meanwhile, never ours.
        if value < times { return cluster }
        if value == times { watch.noteFree(cluster) }
        slice.setRefcount(index, order: order, to: value - times)
      }
      return nil
    }
    cursor = min(cursor, first.cluster)
    if let bad { throw .refcountRange(cluster: bad) }
  }

  /// The refcounts of host clusters; 0 where no block covers one.
  func refcounts(of clusters: [HostCluster]) async throws(ImageError) -> [UInt64] {
    var found: [UInt64] = []
    found.reserveCapacity(clusters.count)
    let order = geometry.refcountOrder
    while found.count < clusters.count {
      let part = neighbours(in: clusters, from: found.count)
      guard let key = try refcounts.sliceKey(of: part[part.startIndex]) else {
        found += part.map { _ in 0 }
        continue
      }
      found += try unsafe await refcounts.cache.lookAt(key, storage: storage) {
        [refcounts] bytes in
        part.map {
          unsafe RefcountWidth.get(bytes, order: order, index: refcounts.indexInSlice($0))
        }
      }
    }
    return found
  }
}
