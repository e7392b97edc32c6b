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

extension Mapping {
  /// Finds where the guest bytes that start at `offset` are stored.
  ///
  /// An extent ends at the first change of mapping and never crosses the end of an L2 slice, so a
  /// long request takes several calls. May read one L2 slice from the host file.
  ///
  /// Source: qcow2 specification, "Cluster mapping" and "Extended L2 Entries".
  func extent(at offset: GuestOffset, length: UInt64) async throws(ImageError) -> Extent {
    let part = slices.part(from: offset, length: length)
    guard let table = try tables.usable(part.l1Index).table else {
      return .unallocated(length: part.length)
    }
    let (first, found) = try await lookAtEntries(part, table: table) { entries in
      (entries[0], self.lookup.first(part, entries, forWriting: false))
    }
    switch found.kind {
    case .unallocated: return .unallocated(length: found.length)
    case .zero: return .zeroes(length: found.length)
    case .data, .inPlace: return .data(found.host, length: found.length)
    case .compressed:
      return .compressed(
        CompressedDescriptor(first.descriptor, geometry),
        within: offset.bytes & geometry.clusterMask, length: found.length)
    case .other: throw badEntry(first, cluster: part.clusters.lowerBound)
    }
  }
}
