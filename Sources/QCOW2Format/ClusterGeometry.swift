public import BlockCore

/// Every shift and mask that follows from the cluster size: the only place that splits an offset.
///
/// Source: qcow2 specification, "Cluster mapping" and "Host cluster management".
public struct ClusterGeometry: Equatable, Sendable {
  /// log2 of the cluster size; 9 to 21.
  public let clusterBits: Int
  /// The width of a refcount: 2^refcountOrder bits; 0 to 6.
  public let refcountOrder: Int
  /// log2 of the size of an L2 entry: 3, or 4 with extended L2 entries.
  public let l2EntryBits: Int

  /// - Parameters:
  ///   - clusterBits: 9 to 21, checked by the caller.
  ///   - refcountOrder: 0 to 6, checked by the caller.
  ///   - extendedL2: whether L2 entries have 16 bytes.
  public init(clusterBits: Int, refcountOrder: Int, extendedL2: Bool = false) {
    precondition((9...21).contains(clusterBits) && (0...6).contains(refcountOrder))
    self.clusterBits = clusterBits
    self.refcountOrder = refcountOrder
    self.l2EntryBits = extendedL2 ? 4 : 3
  }

  /// The cluster size in bytes.
  @inlinable public var clusterSize: UInt64 { 1 << UInt64(clusterBits) }
  /// The mask of the offset inside a cluster.
  @inlinable public var clusterMask: UInt64 { clusterSize &- 1 }
  /// The bits of an L1 or L2 entry beside the offset of a cluster: flags, reserved bits, and the bits
  /// of the offset that an aligned one leaves clear.
  @inlinable public var bitsBesideOffset: UInt64 { ~EntryBits.offset | clusterMask }
  /// log2 of the number of entries in an L2 table.
  @inlinable public var l2Bits: Int { clusterBits &- l2EntryBits }
  /// The number of entries in an L2 table.
  @inlinable public var l2Entries: UInt64 { 1 << UInt64(l2Bits) }
  /// The guest bytes that one L2 table maps.
  @inlinable public var bytesPerL2Table: UInt64 { 1 << UInt64(l2Bits &+ clusterBits) }

  /// log2 of the number of refcounts in a refcount block.
  @inlinable public var refcountBlockBits: Int { clusterBits &+ 3 &- refcountOrder }
  /// The number of refcounts in a refcount block.
  @inlinable public var refcountBlockEntries: UInt64 { 1 << UInt64(refcountBlockBits) }
  /// The largest value that a refcount can have.
  @inlinable public var maxRefcount: UInt64 {
    refcountOrder == 6 ? UInt64.max : (1 << (1 << UInt64(refcountOrder))) &- 1
  }

  /// The number of the refcount block that counts a host cluster: the index of its table entry.
  @inlinable public func refcountBlock(of cluster: HostCluster) -> UInt64 {
    cluster.number >> UInt64(refcountBlockBits)
  }
  /// The index of a host cluster's refcount in its block.
  @inlinable public func indexInRefcountBlock(of cluster: HostCluster) -> Int {
    Int(cluster.number & (refcountBlockEntries &- 1))
  }
  /// The numbers of the refcount blocks that count host clusters.
  @inlinable public func refcountBlocks(of clusters: Range<HostCluster>) -> Range<UInt64> {
    guard let last = clusters.last else { return 0..<0 }
    return refcountBlock(of: clusters.lowerBound)..<(refcountBlock(of: last) + 1)
  }
  /// The host clusters that a refcount block counts.
  @inlinable public func clusters(ofRefcountBlock number: UInt64) -> Range<HostCluster> {
    let first = HostCluster(number << UInt64(refcountBlockBits))
    return first..<(first + refcountBlockEntries)
  }

  /// The guest cluster that holds `offset`.
  @inlinable public func cluster(of offset: GuestOffset) -> GuestCluster {
    GuestCluster(offset.bytes >> UInt64(clusterBits))
  }
  /// The first byte of a guest cluster.
  @inlinable public func start(of cluster: GuestCluster) -> GuestOffset {
    GuestOffset(cluster.number << UInt64(clusterBits))
  }
  /// The host cluster that holds `offset`.
  @inlinable public func hostCluster(of offset: HostOffset) -> HostCluster {
    HostCluster(offset.bytes >> UInt64(clusterBits))
  }
  /// The first byte of a host cluster.
  @inlinable public func start(of cluster: HostCluster) -> HostOffset {
    HostOffset(cluster.number << UInt64(clusterBits))
  }
  /// No pointer of the format leads to a host cluster from here on.
  @inlinable public var endOfHostClusters: HostCluster {
    HostCluster(FormatLimit.hostOffset >> UInt64(clusterBits))
  }
  /// The index into the L1 table for `offset`.
  @inlinable public func l1Index(of offset: GuestOffset) -> UInt64 {
    offset.bytes >> UInt64(l2Bits &+ clusterBits)
  }
  /// The index into the L2 table for `offset`.
  @inlinable public func l2Index(of offset: GuestOffset) -> UInt64 {
    (offset.bytes >> UInt64(clusterBits)) & (l2Entries &- 1)
  }
  /// The number of L1 entries that a disk of `size` bytes needs.
  @inlinable public func l1EntriesNeeded(forSize size: UInt64) -> UInt64 {
    let perTable = bytesPerL2Table
    return size / perTable &+ (size % perTable == 0 ? 0 : 1)
  }
  /// `bytes` rounded up to whole clusters, as a number of clusters.
  @inlinable public func clusters(covering bytes: UInt64) -> UInt64 {
    bytes >> UInt64(clusterBits) &+ (bytes & clusterMask == 0 ? 0 : 1)
  }
}
