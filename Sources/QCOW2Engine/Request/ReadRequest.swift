import BlockCore
import QCOW2Format

/// A guest range with one mapping, as the slow path sees it.
enum Extent: Sendable {
  /// Reads as zeros: not allocated, or with the zero flag.
  case zeroes(length: UInt64)
  case data(HostOffset, length: UInt64)

  var length: UInt64 {
    switch self {
    case .zeroes(let length), .data(_, let length): length
    }
  }
}

extension Image {
  /// READ, extent by extent.
  func read(_ request: BlockRequest) async throws(ImageError) {
    var done: UInt64 = 0
    while done < request.length {
      let extent = try await extent(
        at: request.offset + done, length: request.length - done)
      let data = request.data.slice(Int(done), Int(extent.length))
      switch extent {
      case .zeroes: try await storage.fillWithZeroes(data)
      case .data(let host, _): try await storage.read(into: data, at: host)
      }
      done += extent.length
    }
  }

  /// Finds where the guest bytes that start at `offset` are stored.
  ///
  /// An extent ends at the first change of mapping and never crosses the end of an L2 slice, so a
  /// long request takes several calls. May read one L2 slice from the host file.
  ///
  /// Source: qcow2 specification, "Cluster mapping".
  func extent(at offset: GuestOffset, length: UInt64) async throws(ImageError) -> Extent {
    let part = slices.part(from: offset, length: length)
    guard let table = try tables.entry(part.l1Index).l2Table else {
      return .zeroes(length: part.length)
    }
    let found = try await withEntries(part, table: table) { entries in
      self.firstExtent(part, entries)
    }
    try check(found.first, cluster: part.clusters.lowerBound)
    return found.extent
  }

  private func firstExtent(
    _ part: SlicePart, _ entries: SliceEntries
  ) -> (first: L2Entry, extent: Extent) {
    let first = entries[0]
    let isData = first.kind(hasZeroFlag: header.hasZeroFlag) == .data
    var count = 1
    while count < entries.count {
      let next = entries[count]
      let nextIsData = next.kind(hasZeroFlag: header.hasZeroFlag) == .data
      guard nextIsData == isData,
        next.kind(hasZeroFlag: header.hasZeroFlag) != .compressed,
        !isData
          || next.hostCluster?.bytes == (first.hostCluster?.bytes ?? 0)
            &+ UInt64(count) << UInt64(geometry.clusterBits)
      else { break }
      count += 1
    }
    let inCluster = part.start.bytes & geometry.clusterMask
    let length = min(part.length, UInt64(count) << UInt64(geometry.clusterBits) - inCluster)
    if isData, let host = first.hostCluster {
      return (first, .data(host + inCluster, length: length))
    }
    return (first, .zeroes(length: length))
  }
}
