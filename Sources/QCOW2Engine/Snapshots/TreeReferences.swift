import BlockCore
import QCOW2Format

/// Counts the references of a copy of L1, or takes them back, piece by piece beside the guest.
///
/// The tree below the copy does not change meanwhile: whatever would, copies it first. A piece is one
/// slice of an L2 table, all of it or nothing; ``position`` says where to go on.
struct TreeReferences: Sendable {
  enum Change: Sendable {
    case raise
    /// The removal of the copy is durable, and nobody reads through it any more. What nothing refers to
    /// afterwards is punched, if asked for.
    case lower(punches: Bool)
  }

  private let entries: [L1Entry]
  /// The next piece: the index of the L1 entry, and the slice of its table.
  private(set) var position: (index: Int, slice: UInt64) = (0, 0)

  init(_ entries: [L1Entry]) { self.entries = entries }

  /// Does the next piece.
  ///
  /// A table is counted with its last slice when it is lowered and with its first when it is raised: as
  /// long as any of its clusters has the reference, so has the table.
  ///
  /// - Returns: False when there was none left.
  mutating func step(_ change: Change, in image: Image) async throws(ImageError) -> Bool {
    while position.index < entries.count && entries[position.index].l2Table == nil {
      position.index += 1
    }
    guard position.index < entries.count, let table = entries[position.index].l2Table else {
      return false
    }
    let slices = image.geometry.clusterSize / UInt64(image.mapping.cache.sliceSize)
    let key = table + position.slice * UInt64(image.mapping.cache.sliceSize)
    var clusters = try await Self.clusters(key, image)
    let own = image.geometry.hostCluster(of: table)
    switch change {
    case .raise:
      if position.slice == 0 { clusters.append(own) }
      try await image.supply.allocator.addReferences(clusters)
    case .lower(let punches):
      if position.slice == slices - 1 { clusters.append(own) }
      try await image.supply.allocator.dropReferences(clusters, punches: punches)
    }
    image.durability.noteDirty()
    position.slice += 1
    if position.slice == slices { position = (position.index + 1, 0) }
    return true
  }

  /// What the entries of a slice refer to, each as often as it is counted.
  private static func clusters(
    _ key: HostOffset, _ image: Image
  ) async throws(ImageError) -> [UInt64] {
    let rules = image.mapping.rules
    let geometry = image.geometry
    return try unsafe await image.mapping.cache.lookAt(key, storage: image.reader.storage) {
      bytes in
      var found: [UInt64] = []
      for position in stride(from: 0, to: image.mapping.cache.sliceSize, by: rules.entrySize) {
        let entry = unsafe L2Entry(raw: bytes.be64(position))
        if entry.kind(hasZeroFlag: false) == .compressed {
          found += CompressedDescriptor(entry, geometry).hostClusters(geometry)
        } else if !rules.hasDataFile, let host = entry.hostCluster {
          found.append(geometry.hostCluster(of: host))
        }
      }
      return found
    }
  }
}

extension ClusterAllocator {
  /// Raises the refcounts of clusters in use by one each time that they are named: of all, or of none.
  ///
  /// - Throws: ``ImageError/refcountRange(cluster:)`` if one has no reference, or can have no more.
  func addReferences(_ clusters: [UInt64]) async throws(ImageError) {
    await mutex.acquire()
    defer { mutex.release() }
    var done = 0
    do throws(ImageError) {
      for cluster in clusters {
        try await raise(cluster)
        done += 1
      }
    } catch {
      for cluster in clusters.prefix(done) { try? await decrement(cluster..<(cluster + 1)) }
      throw error
    }
  }

  private func raise(_ cluster: UInt64) async throws(ImageError) {
    let (order, most) = (geometry.refcountOrder, geometry.maxRefcount)
    let isRaised = try await withSlice(of: cluster) { [refcounts] slice in
      let index = refcounts.indexInSlice(cluster)
      let value = unsafe RefcountWidth.get(slice.bytes, order: order, index: index)
      if value == 0 || value == most { return false }
      slice.setRefcount(index, order: order, to: value + 1)
      return true
    }
    if !isRaised { throw .refcountRange(cluster: cluster) }
  }

  /// Lowers the refcounts of clusters by one each time that they are named; unlike ``release(_:punch:)``,
  /// also of tables that others go on using.
  ///
  /// - Throws: ``ImageError/overlapsMetadata(cluster:)`` for metadata that would become free, before
  ///   anything is done to it; ``ImageError/refcountRange(cluster:)``. Those named before are done.
  func dropReferences(_ clusters: [UInt64], punches: Bool) async throws(ImageError) {
    for cluster in clusters {
      if try await refcount(of: cluster) == 1 {
        try await release(ClusterRun(start: cluster, count: 1, isFresh: false), punch: punches)
      } else {
        await mutex.acquire()
        defer { mutex.release() }
        try await decrement(cluster..<(cluster + 1))
      }
    }
  }
}
