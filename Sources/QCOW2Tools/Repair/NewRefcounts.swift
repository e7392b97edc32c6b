import BlockCore
import QCOW2Format

/// A refcount table and its blocks, complete, in one run of clusters that nothing refers to.
///
/// First the table, then the blocks in order. There is a block only where there are references, so
/// the size follows the host file, not the virtual disk [ALLOC-11].
struct NewRefcounts {
  private let geometry: ClusterGeometry
  private let plan: RefcountPlan

  /// Finds the place; changes nothing.
  ///
  /// - Throws: ``ToolError/limit(_:found:allowed:)`` if the table would be too long;
  ///   ``ToolError/deviceTooSmall(needed:available:)`` if a block device has no room.
  init(_ scan: RefcountScan, isBlockDevice: Bool, length: UInt64) throws(ToolError) {
    geometry = scan.geometry
    do throws(RefcountPlan.TableTooLong) {
      plan = try RefcountPlan(
        counting: Self.blocksInUse(scan), scan.geometry, findPlace: scan.firstFree)
    } catch {
      throw .limit(
        .refcountTableEntries, found: error.entries, allowed: FormatLimit.refcountTableBytes / 8)
    }
    let end = self.end
    if isBlockDevice && end > length { throw .deviceTooSmall(needed: end, available: length) }
  }

  /// Where the last of the clusters ends, in bytes.
  private var end: UInt64 { geometry.start(ofHostCluster: plan.clusters.upperBound).bytes }

  /// Whether there is a block for the refcount of a cluster.
  func covers(_ cluster: UInt64) -> Bool { plan.covers(cluster) }

  /// Writes blocks and table, makes them durable, and points the header at them, and at a new
  /// snapshot table if there is one.
  func write(to file: any WritableImageBytes, _ scan: RefcountScan) throws(ToolError) {
    if !file.isBlockDevice && file.length < end { try file.setLength(end) }
    for (position, number) in plan.numbers.enumerated() {
      try write(number, at: plan.block(at: position), to: file, scan)
    }
    try writeTable(to: file)
    try file.sync()
    let snapshots = scan.newSnapshotTable
    try HeaderSector(file).setRefcountTable(
      plan,
      snapshotTable: snapshots.isEmpty
        ? nil : geometry.start(ofHostCluster: snapshots.lowerBound))
  }

  private func write(
    _ number: UInt64, at offset: HostOffset, to file: any WritableImageBytes, _ scan: RefcountScan
  ) throws(ToolError) {
    let block = IOBuffer(count: Int(geometry.clusterSize))
    let own = plan.clusters
    for (index, cluster) in geometry.clusters(ofRefcountBlock: number).enumerated() {
      block.setRefcount(
        index, order: geometry.refcountOrder,
        to: own.contains(cluster) ? 1 : scan.referencesWithoutStructures(cluster))
    }
    try unsafe file.write(block.bytes, at: offset)
    withExtendedLifetime(block) {}
  }

  private func writeTable(to file: any WritableImageBytes) throws(ToolError) {
    let table = IOBuffer(count: plan.table.count << geometry.clusterBits)
    unsafe plan.storeEntries(in: table.base)
    try unsafe file.write(table.bytes, at: plan.tableOffset)
    withExtendedLifetime(table) {}
  }

  private static func blocksInUse(_ scan: RefcountScan) -> [UInt64] {
    let geometry = scan.geometry
    // Behind the end of the file, too: what entries lead to there must not be handed out.
    var found = Set(
      scan.check.lost.filter { $0.value > 0 }.map { geometry.refcountBlock(of: $0.key) })
    if scan.hidesReferences {
      found.formUnion(0...geometry.refcountBlock(of: scan.fileClusters))
      return Array(found)
    }
    var position: UInt64 = 0
    while let cluster = scan.check.references.nextReferenced(from: position) {
      let number = geometry.refcountBlock(of: cluster)
      found.insert(number)
      position = geometry.clusters(ofRefcountBlock: number).upperBound
    }
    return Array(found.union(geometry.refcountBlocks(of: scan.newSnapshotTable)))
  }
}
