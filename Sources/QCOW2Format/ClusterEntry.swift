public import BlockCore

/// The second half of an extended L2 entry: two bits for each of 32 subclusters.
///
/// Source: qcow2 specification, "Extended L2 Entries".
public struct SubclusterBitmap: Equatable, Sendable {
  /// The subclusters of a cluster.
  public static let count = 32
  public var raw: UInt64
  @inlinable public init(raw: UInt64) { self.raw = raw }
  @inlinable public init(allocated: UInt32, zero: UInt32) {
    raw = UInt64(zero) << 32 | UInt64(allocated)
  }
  /// Bit x: subcluster x has its data in the host cluster.
  @inlinable public var allocated: UInt32 { UInt32(truncatingIfNeeded: raw) }
  /// Bit x: subcluster x reads as zeros.
  @inlinable public var zero: UInt32 { UInt32(truncatingIfNeeded: raw >> 32) }
  /// Some subcluster has both bits, which the format forbids.
  @inlinable public var isInvalid: Bool { allocated & zero != 0 }
}

/// One entry of an L2 table, whole: the descriptor and, with extended L2 entries, the bitmap.
public struct ClusterEntry: Equatable, Sendable {
  public var descriptor: L2Entry
  /// All zeros where the format has none.
  public var bitmap: SubclusterBitmap

  @inlinable public init(_ descriptor: L2Entry, _ bitmap: SubclusterBitmap = .init(raw: 0)) {
    self.descriptor = descriptor
    self.bitmap = bitmap
  }
}

/// What one subcluster reads as; without extended L2 entries a cluster has one subcluster.
public enum SubclusterState: UInt8, Sendable {
  /// What the backing file has, or zeros.
  case unallocated
  case zero
  /// In the entry's host cluster.
  case data
  /// The whole cluster is compressed.
  case compressed
  /// The entry breaks the format.
  case invalid
}

/// How the entries of one image are read: what depends on its version and features.
public struct EntryRules: Equatable, Sendable {
  public let geometry: ClusterGeometry
  /// Version 3 without extended L2 entries: bit 0 of the descriptor.
  public let hasZeroFlag: Bool
  public let isExtended: Bool
  /// Host offset 0 is a cluster like any other, if COPIED.
  public let hasDataFile: Bool

  public init(_ header: Header) {
    geometry = header.geometry
    isExtended = header.incompatible.contains(.extendedL2)
    hasZeroFlag = header.hasZeroFlag && !isExtended
    hasDataFile = header.incompatible.contains(.externalDataFile)
  }

  /// log2 of the size of a subcluster.
  @inlinable public var subclusterBits: Int {
    isExtended ? geometry.clusterBits &- 5 : geometry.clusterBits
  }
  /// The size of a subcluster in bytes; at least 512.
  @inlinable public var subclusterSize: UInt64 { 1 << UInt64(subclusterBits) }
  /// The subclusters of a cluster.
  @inlinable public var subclusters: Int { isExtended ? SubclusterBitmap.count : 1 }
  /// The bytes of an entry.
  @inlinable public var entrySize: Int { 1 << geometry.l2EntryBits }

  /// The host cluster of an entry, whether or not all of it is in use; nil if there is none.
  @inlinable public func hostCluster(_ entry: ClusterEntry) -> HostOffset? {
    let raw = entry.descriptor.raw
    if raw & EntryBits.compressed != 0 { return nil }
    if raw & EntryBits.offset != 0 { return HostOffset(raw & EntryBits.offset) }
    return hasDataFile && raw & EntryBits.copied != 0 ? HostOffset(0) : nil
  }

  /// The state of the subcluster at `index`, and how many from it on have the same, at least 1.
  @inlinable public func run(
    _ entry: ClusterEntry, from index: Int
  ) -> (state: SubclusterState, count: Int) {
    if !isExtended { return (state(entry.descriptor), 1) }
    if entry.descriptor.raw & EntryBits.compressed != 0 {
      return (compressed, SubclusterBitmap.count &- index)
    }
    let bitmap = entry.bitmap
    if bitmap.isInvalid { return (.invalid, SubclusterBitmap.count &- index) }
    let allocated = bitmap.allocated >> UInt32(index)
    let zero = bitmap.zero >> UInt32(index)
    let left = SubclusterBitmap.count &- index
    if allocated & 1 != 0 {
      let isUsable = hostCluster(entry) != nil
      return (isUsable ? .data : .invalid, min((~allocated).trailingZeroBitCount, left))
    }
    if zero & 1 != 0 { return (.zero, min((~zero).trailingZeroBitCount, left)) }
    return (.unallocated, min((allocated | zero).trailingZeroBitCount, left))
  }

  /// The state of a cluster without subclusters.
  @inlinable public func state(_ entry: L2Entry) -> SubclusterState {
    switch entry.kind(hasZeroFlag: hasZeroFlag) {
    case .unallocated:
      hasDataFile && entry.isCopied ? .data : .unallocated
    case .zero: .zero
    case .data: .data
    case .compressed: compressed
    }
  }

  /// What a compressed descriptor stands for: nothing where clusters lie in an external data file.
  @inlinable var compressed: SubclusterState { hasDataFile ? .invalid : .compressed }

  /// Whether any subcluster has its data in the entry's host cluster.
  public func hasData(_ entry: ClusterEntry) -> Bool {
    isExtended
      ? entry.descriptor.raw & EntryBits.compressed == 0 && entry.bitmap.allocated != 0
      : state(entry.descriptor) == .data
  }

  /// The entry of a cluster that reads as zeros and has no host cluster; version 3 only.
  public var zeros: ClusterEntry {
    isExtended
      ? ClusterEntry(.unallocated, SubclusterBitmap(allocated: 0, zero: .max))
      : ClusterEntry(.unallocated.zeroed)
  }

  /// The entry of a host cluster that is ours alone, with the given subclusters in use.
  ///
  /// Without extended L2 entries, the bits are ignored: the whole cluster is data.
  public func entry(
    host: HostOffset, allocated: UInt32, zero: UInt32
  ) -> ClusterEntry {
    ClusterEntry(
      L2Entry(data: host, copied: true),
      isExtended ? SubclusterBitmap(allocated: allocated, zero: zero) : .init(raw: 0))
  }
}
