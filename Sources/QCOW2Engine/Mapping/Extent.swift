package import BlockCore
package import QCOW2Format

/// A guest range with one mapping, as the slow path sees it.
package enum Extent: Sendable {
  /// Not in this image: what the backing file has, or zeros.
  case unallocated(length: UInt64)
  case zeroes(length: UInt64)
  /// At a place in the file with the guest's data.
  case data(HostOffset, length: UInt64)
  /// Part of one compressed cluster, from the byte `within` it on.
  case compressed(CompressedDescriptor, within: UInt64, length: UInt64)

  package var length: UInt64 {
    switch self {
    case .unallocated(let length), .zeroes(let length), .data(_, let length),
      .compressed(_, _, let length):
      length
    }
  }
}

extension Image {
  /// Finds where the guest bytes that start at `offset` are stored.
  ///
  /// An extent ends at the first change of mapping and never crosses the end of an L2 slice, so a
  /// long request takes several calls. May read one L2 slice from the host file.
  ///
  /// Source: qcow2 specification, "Cluster mapping" and "Extended L2 Entries".
  func extent(at offset: GuestOffset, length: UInt64) async throws(ImageError) -> Extent {
    let part = slices.part(from: offset, length: length)
    guard let table = try tables.entry(part.l1Index).l2Table else {
      return .unallocated(length: part.length)
    }
    let found = try await lookAtEntries(part, table: table) { entries in
      self.firstExtent(part, entries)
    }
    guard let extent = found.extent else {
      throw badEntry(found.first, cluster: part.clusters.lowerBound)
    }
    return extent
  }

  /// The extent at the start of `part`; nil if its entry breaks the format.
  private func firstExtent(
    _ part: SlicePart, _ entries: SliceEntries
  ) -> (first: ClusterEntry, extent: Extent?) {
    let first = entries[0]
    let inCluster = part.start.bytes & geometry.clusterMask
    let start = rules.run(first, from: Int(inCluster >> UInt64(rules.subclusterBits)))
    let host = rules.hostCluster(first)
    switch start.state {
    case .compressed:
      let length = min(part.length, geometry.clusterSize - inCluster)
      return (
        first,
        .compressed(
          CompressedDescriptor(first.descriptor, geometry), within: inCluster, length: length)
      )
    case .invalid: return (first, nil)
    case .data:
      guard let host, rules.isPlaced(host, part.start) else { return (first, nil) }
      return (first, .data(host + inCluster, length: run(part, entries, .data, host)))
    case .unallocated:
      return (first, .unallocated(length: run(part, entries, .unallocated, nil)))
    case .zero: return (first, .zeroes(length: run(part, entries, .zero, nil)))
    }
  }

  /// How many bytes from the start of `part` on have one state and, with `host`, contiguous
  /// clusters.
  func run(
    _ part: SlicePart, _ entries: SliceEntries, _ state: SubclusterState, _ host: HostOffset?
  ) -> UInt64 {
    var position = part.start.bytes & geometry.clusterMask
    var covered: UInt64 = 0
    var index = 0
    while covered < part.length {
      let entry = entries[index]
      if let host {
        let wanted = host.bytes &+ UInt64(index) << UInt64(geometry.clusterBits)
        if rules.hostCluster(entry)?.bytes != wanted { break }
      }
      let (found, count) = rules.run(
        entry, from: Int(position >> UInt64(rules.subclusterBits)))
      if found != state { break }
      let end =
        ((position >> UInt64(rules.subclusterBits)) + UInt64(count))
        << UInt64(rules.subclusterBits)
      covered += end - position
      if end < geometry.clusterSize { break }
      position = 0
      index += 1
    }
    return min(covered, part.length)
  }

  /// What is wrong with an entry that cannot be used.
  func badEntry(_ entry: ClusterEntry, cluster: UInt64) -> ImageError {
    let problem =
      rules.problem(entry, at: geometry.start(ofGuestCluster: cluster)) ?? .notAtGuestOffset
    let isBitmap = problem == .allocatedAndZero
    return .format(
      .badEntry(
        name: isBitmap ? "subcluster bitmap of guest cluster" : "L2 entry of guest cluster",
        index: cluster, value: isBitmap ? entry.bitmap.raw : entry.descriptor.raw,
        problem: problem))
  }
}
