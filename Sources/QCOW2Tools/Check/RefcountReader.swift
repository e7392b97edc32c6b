import BlockCore
import QCOW2Format

/// The refcounts as the image has them, read block by block through a small cache.
final class RefcountReader {
  /// What the refcount table says about one block.
  enum Block {
    /// No block: all its refcounts are zero.
    case none
    case at(HostOffset)
    /// Not aligned, or beyond every file: its refcounts cannot be known.
    case unreadable
  }

  private static let cacheBytes = 32 << 20
  /// No file reaches further: the end of a block is then below 2^63.
  private static let mostOffset = UInt64(Int64.max) - (1 << 22)

  private let bytes: any ImageBytes
  private let geometry: ClusterGeometry
  /// The refcount table, raw entries; at most 2^20, the header's limit.
  let table: [RefcountTableEntry]
  private var slots: [(index: UInt64, block: IOBuffer)?]

  init(_ bytes: any ImageBytes, _ head: HeaderCluster) throws(ToolError) {
    self.bytes = bytes
    geometry = head.geometry
    let clusters = UInt64(head.header.refcountTableClusters)
    let length = Int(clusters << UInt64(geometry.clusterBits))
    let raw = try bytes.block(at: HostOffset(head.header.refcountTableOffset), count: length)
    table = (0..<length / 8).map { RefcountTableEntry(raw: raw.be64($0 * 8)) }
    let slotCount = max(4, min(1024, Self.cacheBytes >> geometry.clusterBits))
    slots = Array(repeating: nil, count: slotCount)
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
    if let cached = slots[slot], cached.index == index { return cached.block }
    let block = slots[slot]?.block ?? IOBuffer(count: Int(geometry.clusterSize))
    slots[slot] = nil
    try bytes.read(into: block, count: block.count, at: offset)
    slots[slot] = (index, block)
    return block
  }

  /// The refcount of a cluster; nil if it cannot be known.
  func refcount(of cluster: UInt64) throws(ToolError) -> UInt64? {
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
