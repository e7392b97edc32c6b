import BlockCore
import QCOW2Format

/// Where a larger refcount table, and the refcount blocks that count it, go.
///
/// All of it starts at the first cluster that the old table cannot count:
/// `blocks.count` blocks, then the table. The blocks count themselves and the table.
struct RefcountTableLayout {
  let first: UInt64
  let blocks: Range<UInt64>
  let tableStart: UInt64
  let tableClusters: UInt64

  var end: UInt64 { tableStart + tableClusters }

  /// Plans a table half as large again, and large enough for `index` and for itself.
  init(
    growing old: DiskTable, toCover index: UInt64, geometry: ClusterGeometry
  ) throws(ImageError) {
    let entriesPerCluster = geometry.clusterSize / 8
    let perBlock = geometry.refcountBlockEntries
    first = UInt64(old.count) << UInt64(geometry.refcountBlockBits)
    let wanted = max(UInt64(old.count) + UInt64(old.count) / 2, index + 1) + 1
    var clusters = (wanted + entriesPerCluster - 1) / entriesPerCluster
    var blockCount: UInt64 = 1
    while true {
      blockCount = max(1, (clusters + blockCount + perBlock - 1) / perBlock)
      let covered = UInt64(old.count) + blockCount
      if blockCount * perBlock >= blockCount + clusters {
        if covered <= clusters * entriesPerCluster { break }
        clusters += 1
      }
    }
    guard
      clusters << UInt64(geometry.clusterBits)
        <= max(
          FormatLimit.refcountTableBytes, geometry.clusterSize)
    else { throw .noSpace }
    blocks = first..<(first + blockCount)
    tableStart = first + blockCount
    tableClusters = clusters
  }

  private func entry(_ index: Int, old: DiskTable, geometry: ClusterGeometry) -> UInt64 {
    if index < old.count { return old.load(index) }
    let block = blocks.lowerBound + UInt64(index - old.count)
    return block < blocks.upperBound
      ? RefcountTableEntry(block: geometry.start(ofHostCluster: block)).raw : 0
  }

  private func tableBytes(
    old: DiskTable, geometry: ClusterGeometry
  ) throws(ImageError) -> IOBuffer {
    let buffer = try IOBuffer.ofTable(Int(tableClusters << UInt64(geometry.clusterBits)))
    for index in 0..<(buffer.count / 8) {
      unsafe buffer.base.storeBE64(entry(index, old: old, geometry: geometry), index * 8)
    }
    return buffer
  }

  /// The new table, for use in memory.
  func table(old: DiskTable, geometry: ClusterGeometry) throws(ImageError) -> DiskTable {
    let bytes = try tableBytes(old: old, geometry: geometry)
    defer { withExtendedLifetime(bytes) {} }
    return try unsafe DiskTable(
      offset: geometry.start(ofHostCluster: tableStart),
      bytes: UnsafeRawBufferPointer(start: bytes.base, count: bytes.count),
      count: bytes.count / 8)
  }

  /// Writes blocks and table, whole, to the host file.
  func write(
    old: DiskTable, storage: ImageStorage, geometry: ClusterGeometry
  ) async throws(ImageError) {
    for block in blocks {
      let buffer = IOBuffer(count: Int(geometry.clusterSize))
      let base = first + (block - first) * geometry.refcountBlockEntries
      for index in 0..<geometry.refcountBlockEntries where base + index < end {
        unsafe RefcountWidth.set(
          buffer.base, order: geometry.refcountOrder, index: Int(index), value: 1)
      }
      try await storage.write(from: buffer, at: geometry.start(ofHostCluster: block))
    }
    try await storage.write(
      from: try tableBytes(old: old, geometry: geometry),
      at: geometry.start(ofHostCluster: tableStart))
  }
}
