package import BlockCore
import QCOW2Format

/// Compares everything that an image refers to with its refcounts, without changing anything.
///
/// Covers the header, the refcount structures, the active disk, all snapshots, bitmaps and the
/// encryption header; data files and backing files are never opened [SEC-1]. Each L2 table is read
/// once, however many snapshots share it. Memory is bounded by the length of the file, and nothing
/// in an image makes the check trap or go on for ever.
///
/// Where it says more than qemu-img: overlapping metadata that the refcounts account for, but for
/// guest data in an L2 table, which is a remark only, since neither is ever changed in place; data
/// file offsets that are not the guest's, bit 0 of L2 entries that have no zero flag, a bitmaps bit
/// without bitmaps; broken bitmaps and encryption headers are corruptions, with which qemu-img
/// opens nothing.
package final class ImageCheck: @unchecked Sendable {
  // why: its threads change only `references`, and count and tell findings one after the other; `lost` is
  // for checks of one thread
  /// More clusters than this are not checked; qemu-img has the same limit.
  private static let mostClusters = UInt64(Int32.max)

  let bytes: any ImageBytes
  let head: HeaderCluster
  let geometry: ClusterGeometry
  let rules: EntryRules
  let refcounts: RefcountReader
  private let report: (CheckFinding) -> Void
  /// What a repair mends is judged as it will be, and not reported.
  let plansRepair: Bool
  /// The same for entries of the snapshot table.
  var mendsSnapshots = false
  /// All L1 tables, those of snapshots included.
  var l1Tables: [L1Place] = []
  /// All L2 tables that can be read.
  var l2Tables: [HostOffset: L2Uses] = [:]
  /// The snapshot table that a repair writes; nil if it writes none.
  var snapshotRepair: SnapshotRepair?
  /// The bytes of the snapshot table as it is.
  var snapshotTableLength: UInt64 = 0
  /// Clusters behind the end of the file, near it, are noted in ``lost``: a check of a hostile image
  /// must not pay for it.
  var notesLost = false
  /// Those that something refers to, with the number of references that count.
  private(set) var lost: [HostCluster: UInt64] = [:]
  /// Entries that a repair mends.
  var mendable: UInt64 = 0
  let references: ReferenceMap
  /// How many clusters behind the end of the file may have refcounts that are compared, too.
  var comparesBehindEnd: UInt64 = 0
  /// Those that judge L2 tables and compare refcounts.
  var threads = CheckThreads.one
  private var reserved: [Range<HostCluster>] = []
  var isCancelled: () -> Bool = { false }
  var result = CheckResult()

  /// Checks an image.
  ///
  /// - Parameters:
  ///   - bytes: The image.
  ///   - threads: The findings and their order do not depend on how many there are. With more than one,
  ///     `bytes` and `isCancelled` are used by several at the same time.
  ///   - report: Called with each finding, by one thread at a time: metadata from the L1 tables on, by its
  ///     place; overlaps with guest data; refcounts by cluster.
  ///   - reserved: Host clusters that a running engine has set aside: each may have a reference that
  ///     no table shows.
  ///   - isCancelled: Asked between tables; true ends the check.
  /// - Returns: The counts of all findings.
  /// - Throws: ``ToolError`` if the check could not be completed: exit status 1.
  package static func run(
    _ bytes: any ImageBytes, threads: CheckThreads = .one,
    report: @escaping (CheckFinding) -> Void = { _ in }, reserved: [Range<HostCluster>] = [],
    isCancelled: @escaping () -> Bool = { false }
  ) throws(ToolError) -> CheckResult {
    let check = try ImageCheck(bytes, report)
    check.threads = threads
    check.reserved = reserved
    check.isCancelled = isCancelled
    try check.run()
    return check.result
  }

  init(
    _ bytes: any ImageBytes, plansRepair: Bool = false,
    _ report: @escaping (CheckFinding) -> Void
  ) throws(ToolError) {
    self.bytes = bytes
    self.report = report
    self.plansRepair = plansRepair
    head = try HeaderCluster(reading: bytes)
    geometry = head.geometry
    rules = EntryRules(head.header)
    let clusters = geometry.clusters(covering: head.fileLength)
    guard clusters <= Self.mostClusters else {
      throw .limit(.clusters, found: clusters, allowed: Self.mostClusters)
    }
    refcounts = try RefcountReader(bytes, head)
    // One more: what starts in the last cluster may end in the one after it.
    references = ReferenceMap(clusterCount: clusters + 1)
  }

  func run() throws(ToolError) {
    try countUses()
    checkRefcountTable()
    checkRefcountBlocks()
    try compareRefcounts()
  }

  /// Counts the references to everything but the refcount structures.
  func countUses() throws(ToolError) {
    result.totalClusters = geometry.clusters(covering: head.diskSize)
    judgeHeader()
    add(.header, at: HostOffset(0), length: geometry.clusterSize)
    try checkMapping()
    try checkEncryptionHeader()
    try checkBitmaps()
  }

  /// Says what keeps the image from being opened, with the engine's own judgement.
  private func judgeHeader() {
    let header = head.header
    if let problem = header.problemForReading(fileLength: head.fileLength) {
      found(.unreadable(problem))
    } else if let problem = header.problemForWriting(fileLength: head.fileLength) {
      found(.unwritable(problem))
    }
    let isLost = !header.incompatible.contains(.externalDataFile)
    if isLost, header.autoclear.contains(.rawExternalData), !plansRepair { found(.rawDataMissing) }
  }

  /// Ends a check that is not wanted any more; called between tables.
  func checkpoint() throws(ToolError) {
    if isCancelled() { throw .cancelled }
  }

  /// Whether a running engine has a cluster for what is to come.
  func isReserved(_ cluster: HostCluster) -> Bool {
    reserved.contains { $0.contains(cluster) }
  }

  func found(_ finding: CheckFinding) {
    result.count(finding.severity)
    report(finding)
  }

  /// Notes clusters behind the end of the file, as far as a repair might place something there.
  func noteLost(_ bytes: Range<UInt64>, times: UInt64 = 0) {
    assert(threads.count == 1, "several threads note what is lost")
    let first = max(hostCluster(HostOffset(bytes.lowerBound)), references.end)
    let end = min(hostCluster(HostOffset(bytes.upperBound - 1)) + 1, endOfLost)
    guard first < end else { return }
    for cluster in first..<end {
      let (sum, overflow) = lost[cluster, default: 0].addingReportingOverflow(times)
      lost[cluster] = overflow ? UInt64.max : sum
    }
  }

  /// What lies further out than this is not noted in ``lost``.
  var endOfLost: HostCluster { references.end + (1 << 14) }

  /// Counts a reference to each cluster of a range of metadata.
  ///
  /// The last cluster of a file may be cut short; what lies further out is a finding, and takes
  /// no memory.
  func add(_ use: HostUse, at offset: HostOffset, length: UInt64) {
    guard length > 0 else { return }
    guard isInFile(offset, length: length) else {
      found(.beyondEnd(use: use, offset: offset, length: length))
      noteBeyondEnd(offset, length: length, times: 1)
      return
    }
    let last = geometry.hostCluster(of: HostOffset(offset.bytes + length - 1))
    for cluster in geometry.hostCluster(of: offset)...last {
      let before = references.add(use, to: cluster)
      if before == .nothing || (before == use && use.isShared) { continue }
      if before.isShared && use.isShared {
        found(
          .doubleUse(cluster: geometry.start(of: cluster), first: before, second: use))
        continue
      }
      if before != .conflict {
        found(
          .overlap(cluster: geometry.start(of: cluster), first: before, second: use))
      }
      references.markConflict(cluster)
    }
  }

  /// Whether a range of at least one byte ends in the file, or in its last cluster, of which the file
  /// may have a part only.
  func isInFile(_ offset: HostOffset, length: UInt64) -> Bool {
    let (end, overflow) = offset.bytes.addingReportingOverflow(length)
    return !overflow && end < head.fileLength &+ geometry.clusterSize
  }

  /// Notes a range that is not in the file, where that is wanted.
  func noteBeyondEnd(_ offset: HostOffset, length: UInt64, times: UInt64) {
    let (end, overflow) = offset.bytes.addingReportingOverflow(length)
    if notesLost && !overflow { noteLost(offset.bytes..<end, times: times) }
  }
}
