import BlockCore
import QCOW2Format

/// Changes the options of an image that nobody has open: its version, the width of refcounts, lazy
/// refcounts and the data file.
///
/// All that may be refused is refused before anything changes. Then, `|` being an fsync:
///
///     repair of refcounts, if the image is dirty | what the new header points at, in free clusters |
///     the first sector
///
/// On the way down to version 2, clusters that read as zeros come first: see ``ZeroExpansion``. A crash leaves
/// the old image or the new one, or on the way down an image of version 3 that reads the same; the same
/// command goes on from there, and at worst clusters leak.
package struct ImageAmend {
  private let file: any WritableImageBytes
  private let options: AmendOptions
  /// Called after each step; not where the image is not whole.
  private let step: () throws(ToolError) -> Void

  /// The steps of one change, at most.
  package static let steps: UInt64 = 4

  /// A change of an image that is locked for writing; `step` is called where it may end.
  package init(
    _ file: any WritableImageBytes, _ options: AmendOptions,
    step: @escaping () throws(ToolError) -> Void = {}
  ) {
    self.file = file
    self.options = options
    self.step = step
  }

  /// Throws for what the image does not allow, and changes nothing.
  package func check() throws(ToolError) { _ = try AmendPlan(file, options) }

  /// The names of the options that would change how an engine that has the image open reads or writes it.
  ///
  /// - Throws: ``ToolError/amend(_:)`` for what the image does not allow at all.
  package static func fixedWhileServed(
    _ file: any ImageBytes, _ options: AmendOptions
  ) throws(ToolError) -> [String] {
    try AmendPlan(file, options).fixedWhileServed
  }

  /// Carries the change out.
  package func run() throws(ToolError) {
    var plan = try AmendPlan(file, options)
    let needsCounts = plan.changesWidth || plan.isUpgrade || plan.isDowngrade
    if needsCounts || plan.head.header.incompatible.contains(.dirty) {
      // With nothing to mend, nothing but unknown autoclear bits changes.
      _ = try RefcountRebuild.run(file)
      try step()
    }
    if plan.isDowngrade {
      try goDown()
      plan = try AmendPlan(file, options)
    }
    try change(plan)
    try step()
  }

  /// What comes before the header of version 2.
  private func goDown() throws(ToolError) {
    var sameVersion = options
    sameVersion.version = nil
    let plan = try AmendPlan(file, sameVersion)
    if plan.changesWidth {
      try change(plan)
      try step()
    }
    if try ZeroExpansion(file).run() {
      try step()
      // Clusters that zeros kept are free now, and COPIED follows the refcounts.
      _ = try RefcountRebuild.run(file)
      try step()
    }
  }

  /// Brings the planned header into force.
  private func change(_ plan: AmendPlan) throws(ToolError) {
    let patches = try newTables(plan)
    guard plan.changesLayout else {
      try HeaderSector(file).change { _ in plan.patches + patches }
      return
    }
    let cluster = try file.block(
      at: HostOffset(0), count: Int(plan.head.geometry.clusterSize))
    try HeaderSector(file).rewrite(try plan.rewrite(cluster, with: patches))
  }

  /// Writes the refcounts and the snapshot table that the planned header points at, durably.
  ///
  /// - Returns: The changes of the header that bring them into force; none if the old ones will do.
  private func newTables(_ plan: AmendPlan) throws(ToolError) -> [HeaderPatch] {
    let snapshots = plan.isUpgrade ? try completedSnapshots(plan.head) : nil
    guard plan.changesWidth || snapshots != nil else { return [] }
    let scan = try RefcountScan(file, plansRepair: false)
    try requireFitting(scan, order: plan.refcountOrder)
    var counts: [HostCluster: UInt64] = [:]
    var patches: [HeaderPatch] = []
    var start = HostCluster(1)
    if let snapshots {
      let place = scan.firstFree(scan.geometry.clusters(covering: UInt64(snapshots.count)))
      for cluster in place { counts[cluster] = 1 }
      for cluster in snapshotTable(plan.head, scan) { counts[cluster] = 0 }
      start = place.upperBound
      let offset = scan.geometry.start(of: place.lowerBound)
      patches.append(.snapshotTable(offset))
      let table = IOBuffer(
        starting: snapshots, count: place.count << scan.geometry.clusterBits)
      let end = offset.bytes + UInt64(table.count)
      if file.isBlockDevice && end > file.length {
        throw .deviceTooSmall(needed: end, available: file.length)
      }
      try unsafe file.write(table.bytes, at: offset)
      withExtendedLifetime(table) {}
    }
    let new = try NewRefcounts(
      scan, order: plan.refcountOrder, counting: counts, placingFrom: start,
      isBlockDevice: file.isBlockDevice, length: file.length)
    try new.prepare(file, scan)
    return patches + [new.plan.headerPatch, .refcountOrder(UInt32(plan.refcountOrder))]
  }

  /// The snapshot table as version 3 asks for it; nil if it is so already.
  private func completedSnapshots(_ head: HeaderCluster) throws(ToolError) -> [UInt8]? {
    guard head.header.snapshotCount > 0 else { return nil }
    let list = try SnapshotList(reading: file, head)
    guard list.snapshots.contains(where: { $0.entry.isIncomplete(version: 3) }) else { return nil }
    return try SnapshotRepair(file, head, list).table
  }

  private func snapshotTable(_ head: HeaderCluster, _ scan: RefcountScan) -> Range<HostCluster> {
    let first = scan.geometry.hostCluster(of: HostOffset(head.header.snapshotsOffset))
    return first..<(first + scan.geometry.clusters(covering: scan.check.snapshotTableLength))
  }

  private func requireFitting(_ scan: RefcountScan, order: Int) throws(ToolError) {
    let largest = ClusterGeometry(
      clusterBits: scan.geometry.clusterBits, refcountOrder: order
    ).maxRefcount
    var position = HostCluster(0)
    while largest < scan.geometry.maxRefcount,
      let cluster = scan.check.references.nextReferenced(from: position)
    {
      let count = scan.check.references.count(of: cluster)
      guard count <= largest else {
        throw .amend(
          .tooManyReferences(
            bits: 1 << order, cluster: scan.geometry.start(of: cluster),
            refcount: count))
      }
      position = cluster + 1
    }
  }
}
