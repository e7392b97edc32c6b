import BlockCore
import QCOW2Format

/// A refcount table and its blocks, complete, in one run of clusters that nothing refers to.
///
/// First the table, then the blocks in order. There is a block only where there are references, so
/// the size follows the host file, not the virtual disk [ALLOC-11].
struct NewRefcounts {
  private let geometry: ClusterGeometry
  private let added: [HostCluster: UInt64]
  let plan: RefcountPlan

  /// Finds the place; changes nothing.
  ///
  /// - Parameters:
  ///   - scan: Says what is referred to.
  ///   - order: log2 of the width of the new refcounts; nil for that of the image. Each count must fit.
  ///   - added: Refcounts of clusters that nothing refers to as yet, all behind `start`'s predecessor.
  ///   - start: No cluster before it is taken.
  ///   - isBlockDevice: Whether the file cannot grow.
  ///   - length: Of the file.
  /// - Throws: ``ToolError/limit(_:found:allowed:)`` if the table would be too long;
  ///   ``ToolError/deviceTooSmall(needed:available:)`` if a block device has no room.
  init(
    _ scan: RefcountScan, order: Int? = nil, counting added: [HostCluster: UInt64] = [:],
    placingFrom start: HostCluster = HostCluster(1), isBlockDevice: Bool, length: UInt64
  ) throws(ToolError) {
    geometry = ClusterGeometry(
      clusterBits: scan.geometry.clusterBits, refcountOrder: order ?? scan.geometry.refcountOrder,
      extendedL2: scan.check.rules.isExtended)
    self.added = added
    let geometry = geometry
    do throws(RefcountPlan.TableTooLong) {
      let used = Self.blocksInUse(scan, geometry).union(added.keys.map(geometry.refcountBlock))
      plan = try RefcountPlan(
        counting: Array(used), geometry, findPlace: { scan.firstFree($0, from: start) })
    } catch {
      throw .limit(
        .refcountTableEntries, found: error.entries, allowed: FormatLimit.refcountTableBytes / 8)
    }
    let end = self.end
    if isBlockDevice && end > length { throw .deviceTooSmall(needed: end, available: length) }
  }

  /// Where the last of the clusters ends, in bytes.
  private var end: UInt64 { geometry.start(of: plan.clusters.upperBound).bytes }

  /// Whether there is a block for the refcount of a cluster.
  func covers(_ cluster: HostCluster) -> Bool { plan.covers(cluster) }

  /// Writes blocks and table, makes them durable, and points the header at them, and at a new
  /// snapshot table if there is one.
  func write(to file: any WritableImageBytes, _ scan: RefcountScan) throws(ToolError) {
    try prepare(file, scan)
    let snapshots = scan.newSnapshotTable
    try HeaderSector(file).setRefcountTable(
      plan,
      snapshotTable: snapshots.isEmpty
        ? nil : geometry.start(of: snapshots.lowerBound))
  }

  /// Writes blocks and table, and makes them durable; nothing points at them yet.
  func prepare(_ file: any WritableImageBytes, _ scan: RefcountScan) throws(ToolError) {
    if !file.isBlockDevice && file.length < end { try file.setLength(end) }
    for (position, number) in plan.numbers.enumerated() {
      try write(number, at: plan.block(at: position), to: file, scan)
    }
    try writeTable(to: file)
    try file.sync()
  }

  private func write(
    _ number: UInt64, at offset: HostOffset, to file: any WritableImageBytes, _ scan: RefcountScan
  ) throws(ToolError) {
    let block = IOBuffer(count: Int(geometry.clusterSize))
    let own = plan.clusters
    for (index, cluster) in geometry.clusters(ofRefcountBlock: number).enumerated() {
      block.setRefcount(
        index, order: geometry.refcountOrder,
        to: own.contains(cluster)
          ? 1 : added[cluster] ?? scan.referencesWithoutStructures(cluster))
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

  private static func blocksInUse(
    _ scan: RefcountScan, _ geometry: ClusterGeometry
  ) -> Set<UInt64> {
    // Behind the end of the file, too: what entries lead to there must not be handed out.
    var found = Set(
      scan.check.lost.filter { $0.value > 0 }.map { geometry.refcountBlock(of: $0.key) })
    if scan.hidesReferences {
      found.formUnion(0...geometry.refcountBlock(of: scan.fileEnd))
      return found
    }
    var position = HostCluster(0)
    while let cluster = scan.check.references.nextReferenced(from: position) {
      let number = geometry.refcountBlock(of: cluster)
      found.insert(number)
      position = geometry.clusters(ofRefcountBlock: number).upperBound
    }
    return found.union(geometry.refcountBlocks(of: scan.newSnapshotTable))
  }
}
