public import BlockCore

/// Where the bytes of a compressed cluster lie: the descriptor of an L2 entry with bit 62.
///
/// The length is known in whole 512-byte sectors only, so what is read may have other bytes at its
/// end, and may reach beyond the end of the file. Source: qcow2 specification, "Compressed Clusters
/// Descriptor".
public struct CompressedDescriptor: Equatable, Sendable {
  /// The first byte; any alignment.
  public let offset: HostOffset
  /// The bytes up to the end of the last sector; 1 to the cluster size and a sector.
  public let length: UInt64

  /// Takes an entry apart whose kind is `compressed`.
  @inlinable public init(_ entry: L2Entry, _ geometry: ClusterGeometry) {
    let offsetBits = Self.offsetBits(geometry)
    offset = HostOffset(entry.raw & ((1 << offsetBits) &- 1))
    let sectors = (entry.raw >> offsetBits) & ((1 << UInt64(geometry.clusterBits - 8)) &- 1)
    length = (sectors &+ 1) &* 512 &- offset.bytes & 511
  }

  /// Describes `length` bytes at `offset`; nil if the offset is too large for its field.
  ///
  /// - Parameters:
  ///   - offset: the first byte.
  ///   - length: of the compressed data, 1 to the cluster size less one.
  ///   - geometry: the image's.
  public init?(offset: HostOffset, length: Int, _ geometry: ClusterGeometry) {
    guard length > 0, offset.bytes < 1 << Self.offsetBits(geometry) else { return nil }
    self.offset = offset
    let sectors = (offset.bytes & 511 &+ UInt64(length) &- 1) >> 9
    self.length = (sectors &+ 1) &* 512 &- offset.bytes & 511
  }

  /// The L2 entry; never COPIED.
  public func entry(_ geometry: ClusterGeometry) -> L2Entry {
    let sectors = (length &+ offset.bytes & 511) >> 9 &- 1
    return L2Entry(raw: EntryBits.compressed | sectors << Self.offsetBits(geometry) | offset.bytes)
  }

  /// The host clusters that count a reference for it.
  public func hostClusters(_ geometry: ClusterGeometry) -> ClosedRange<HostCluster> {
    geometry.hostCluster(of: offset)...geometry.hostCluster(of: offset + (length &- 1))
  }

  /// The width of the offset field.
  @usableFromInline static func offsetBits(_ geometry: ClusterGeometry) -> UInt64 {
    UInt64(62 &- (geometry.clusterBits &- 8))
  }
}
