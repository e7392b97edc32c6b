import BlockCore
import QCOW2Format

/// The refcounts as the image has them, read block by block through a small cache.
@safe
final class RefcountReader {
  /// What the refcount table says about one block.
  enum Block {
    /// No block: all its refcounts are zero.
    case none
    case at(HostOffset)
    /// Not aligned, or beyond every file: its refcounts cannot be known.
    case unreadable
  }

  /// Of all readers of one check together, as far as each can do with its share.
  private static let cacheBytes = 32 << 20
  /// No file reaches further: the end of a block is then below 2^63.
  private static let mostOffset = UInt64(Int64.max) - (1 << 22)

  private let bytes: any ImageBytes
  private let geometry: ClusterGeometry
  /// The refcount table, raw entries; at most 2^20, the header's limit.
  let table: [RefcountTableEntry]
  private var slots: [(index: UInt64, block: IOBuffer)?]
  /// The block that was asked for last, for ``recent(_:)``: the clusters that it counts.
  private var window: (first: UInt64, count: UInt64) = (0, 0)
  private var windowBlock: UnsafeRawPointer?

  init(_ bytes: any ImageBytes, _ head: HeaderCluster) throws(ToolError) {
    self.bytes = bytes
    geometry = head.geometry
    let clusters = UInt64(head.header.refcountTableClusters)
    let length = Int(clusters << UInt64(geometry.clusterBits))
    let raw = try bytes.block(at: HostOffset(head.header.refcountTableOffset), count: length)
    table = (0..<length / 8).map { RefcountTableEntry(raw: raw.be64($0 * 8)) }
    slots = Self.slots(sharing: 1, geometry)
  }

  /// A reader of the same refcounts for one of several threads.
  init(_ other: RefcountReader, threads: Int) {
    bytes = other.bytes
    geometry = other.geometry
    table = other.table
    slots = Self.slots(sharing: threads, geometry)
  }

  private static func slots(
    sharing readers: Int, _ geometry: ClusterGeometry
  ) -> [(index: UInt64, block: IOBuffer)?] {
    let count = (cacheBytes / max(readers, 1)) >> geometry.clusterBits
    return Array(repeating: nil, count: max(4, min(1024, count)))
  }

  /// Where the block with number `index` lies.
  func block(_ index: UInt64) -> Block {
    guard index < UInt64(table.count), let offset = table[Int(index)].block else { return .none }
    let isUnaligned = table[Int(index)].faults(geometry).contains(.unaligned)
    if isUnaligned || offset.bytes > Self.mostOffset { return .unreadable }
    return .at(offset)
  }

  /// The bytes of the block at `offset`, which has the number `index`.
  func contents(_ index: UInt64, at offset: HostOffset) throws(ToolError) -> IOBuffer {
    let slot = Int(index % UInt64(slots.count))
    if let cached = slots[slot], cached.index == index {
      show(index, cached.block)
      return cached.block
    }
    let block = slots[slot]?.block ?? IOBuffer(count: Int(geometry.clusterSize))
    slots[slot] = nil
    // The window may be on the very block that is read over.
    window.count = 0
    try bytes.read(into: block, count: block.count, at: offset)
    slots[slot] = (index, block)
    show(index, block)
    return block
  }

  /// The block stays in its slot, and so in memory, until the next call of ``contents(_:at:)``.
  private func show(_ index: UInt64, _ block: IOBuffer) {
    window = (
      geometry.clusters(ofRefcountBlock: index).lowerBound.number, geometry.refcountBlockEntries
    )
    unsafe windowBlock = UnsafeRawPointer(block.base)
  }

  /// The refcount of a cluster, if the block that was asked for last counts it; else nil.
  @inline(__always) func recent(_ cluster: HostCluster) -> UInt64? {
    let index = cluster.number &- window.first
    guard index < window.count, let block = unsafe windowBlock else { return nil }
    return unsafe RefcountWidth.get(block, order: geometry.refcountOrder, index: Int(index))
  }

  /// The refcount of a cluster; nil if it cannot be known.
  func refcount(of cluster: HostCluster) throws(ToolError) -> UInt64? {
    let index = geometry.refcountBlock(of: cluster)
    switch block(index) {
    case .none: return 0
    case .unreadable: return nil
    case .at(let offset):
      let entry = geometry.indexInRefcountBlock(of: cluster)
      let block = try contents(index, at: offset)
      return block.refcount(entry, order: geometry.refcountOrder)
    }
  }
}
