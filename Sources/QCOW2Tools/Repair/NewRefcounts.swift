import BlockCore
import QCOW2Format

/// A refcount table and its blocks, complete, in one run of clusters that nothing refers to.
///
/// First the table, then the blocks in order. There is a block only where there are references, so
/// the size follows the host file, not the virtual disk [ALLOC-11].
struct NewRefcounts {
  private let geometry: ClusterGeometry
  private let clusters: Range<UInt64>
  private let tableClusters: UInt64
  /// The numbers of the blocks, ascending.
  private let blocks: [UInt64]
  private let covered: Set<UInt64>

  /// Finds the place; changes nothing.
  ///
  /// - Throws: ``ToolError/limit(_:found:allowed:)`` if the table would be too long;
  ///   ``ToolError/deviceTooSmall(needed:available:)`` if a block device has no room.
  init(_ scan: RefcountScan, isBlockDevice: Bool, length: UInt64) throws(ToolError) {
    geometry = scan.geometry
    let used = Self.blocksInUse(scan)
    var place: Range<UInt64> = 0..<0
    while true {
      let blocks = Self.merge(used, covering: place, geometry)
      let entries = (blocks.last ?? 0) + 1
      let tableClusters = geometry.clusters(covering: entries * 8)
      guard entries * 8 <= FormatLimit.refcountTableBytes else {
        throw .limit(
          .refcountTableEntries, found: entries, allowed: FormatLimit.refcountTableBytes / 8)
      }
      let needed = tableClusters + UInt64(blocks.count)
      if needed <= UInt64(place.count) {
        clusters = place.lowerBound..<(place.lowerBound + needed)
        self.tableClusters = tableClusters
        self.blocks = blocks
        covered = Set(blocks)
        break
      }
      // Longer each time, and it ends: each cluster more adds far less than a block.
      place = scan.firstFree(needed)
    }
    let end = clusters.upperBound << UInt64(geometry.clusterBits)
    if isBlockDevice && end > length { throw .deviceTooSmall(needed: end, available: length) }
  }

  /// Whether there is a block for the refcount of a cluster.
  func covers(_ cluster: UInt64) -> Bool {
    covered.contains(cluster >> UInt64(geometry.refcountBlockBits))
  }

  /// Writes blocks and table, makes them durable, and points the header at them, and at a new
  /// snapshot table if there is one.
  func write(to file: any WritableImageBytes, _ scan: RefcountScan) throws(ToolError) {
    let end = clusters.upperBound << UInt64(geometry.clusterBits)
    if !file.isBlockDevice && file.length < end { try file.setLength(end) }
    for (position, index) in blocks.enumerated() {
      try write(index, at: clusters.lowerBound + tableClusters + UInt64(position), to: file, scan)
    }
    try writeTable(to: file)
    try file.sync()
    let snapshots = scan.newSnapshotTable
    try HeaderSector(file).setRefcountTable(
      at: geometry.start(ofHostCluster: clusters.lowerBound), clusters: tableClusters,
      snapshotTable: snapshots.isEmpty
        ? nil : geometry.start(ofHostCluster: snapshots.lowerBound))
  }

  private func write(
    _ index: UInt64, at cluster: UInt64, to file: any WritableImageBytes, _ scan: RefcountScan
  ) throws(ToolError) {
    let block = IOBuffer(count: Int(geometry.clusterSize))
    let first = index << UInt64(geometry.refcountBlockBits)
    for entry in 0..<geometry.refcountBlockEntries {
      unsafe RefcountWidth.set(
        block.base, order: geometry.refcountOrder, index: Int(entry),
        value: clusters.contains(first + entry)
          ? 1 : scan.referencesWithoutStructures(first + entry))
    }
    try unsafe file.write(block.bytes, at: geometry.start(ofHostCluster: cluster))
    withExtendedLifetime(block) {}
  }

  private func writeTable(to file: any WritableImageBytes) throws(ToolError) {
    let table = IOBuffer(count: Int(tableClusters << UInt64(geometry.clusterBits)))
    for (position, index) in blocks.enumerated() {
      let block = geometry.start(
        ofHostCluster: clusters.lowerBound + tableClusters + UInt64(position))
      unsafe table.base.storeBE64(RefcountTableEntry(block: block).raw, Int(index) * 8)
    }
    try unsafe file.write(table.bytes, at: geometry.start(ofHostCluster: clusters.lowerBound))
    withExtendedLifetime(table) {}
  }

  private static func blocksInUse(_ scan: RefcountScan) -> [UInt64] {
    let bits = UInt64(scan.geometry.refcountBlockBits)
    // Behind the end of the file, too: what entries lead to there must not be handed out.
    var found = scan.check.lost.filter { $0.value > 0 }.map { $0.key >> bits }
    if scan.hidesReferences {
      found += 0...(scan.fileClusters >> bits)
      return Set(found).sorted()
    }
    var position: UInt64 = 0
    while let cluster = scan.check.references.nextReferenced(from: position) {
      found.append(cluster >> bits)
      position = ((cluster >> bits) + 1) << bits
    }
    return merge(Set(found).sorted(), covering: scan.newSnapshotTable, scan.geometry)
  }

  private static func merge(
    _ used: [UInt64], covering place: Range<UInt64>, _ geometry: ClusterGeometry
  ) -> [UInt64] {
    guard let last = place.last else { return used }
    let bits = UInt64(geometry.refcountBlockBits)
    return Set(used).union((place.lowerBound >> bits)...(last >> bits)).sorted()
  }
}
