import BlockCore
import QCOW2Format

/// Compares everything that an image refers to with its refcounts, without changing anything.
///
/// Covers the header, the refcount structures, the active disk, all snapshots, bitmaps and the
/// encryption header; data files and backing files are never opened [SEC-1]. Each L2 table is read
/// once, however many snapshots share it. Memory is bounded by the length of the file, and nothing
/// in an image makes the check trap or go on for ever.
///
/// Where it says more than qemu-img: overlapping metadata that the refcounts account for, data file
/// offsets that are not the guest's, bit 0 of L2 entries that have no zero flag, a bitmaps bit
/// without bitmaps; broken bitmaps and encryption headers are corruptions, with which qemu-img
/// opens nothing.
package final class ImageCheck {
  /// More clusters than this are not checked; qemu-img has the same limit.
  private static let mostClusters = UInt64(Int32.max)

  let bytes: any ImageBytes
  let head: ImageHead
  let geometry: ClusterGeometry
  let refcounts: RefcountReader
  private let report: (CheckFinding) -> Void
  var references: ReferenceMap
  var result = CheckResult()

  /// Checks an image.
  ///
  /// - Parameters:
  ///   - bytes: The image.
  ///   - report: Called with each finding, in no promised order.
  /// - Returns: The counts of all findings.
  /// - Throws: ``ToolError`` if the check could not be completed: exit status 1.
  package static func run(
    _ bytes: any ImageBytes, report: @escaping (CheckFinding) -> Void = { _ in }
  ) throws(ToolError) -> CheckResult {
    let check = try ImageCheck(bytes, report)
    try check.run()
    return check.result
  }

  init(
    _ bytes: any ImageBytes, _ report: @escaping (CheckFinding) -> Void
  ) throws(ToolError) {
    self.bytes = bytes
    self.report = report
    head = try ImageHead(reading: bytes)
    geometry = head.geometry
    let clusters = geometry.clusters(covering: head.fileLength)
    guard clusters <= Self.mostClusters else {
      throw .limit(.clusters, found: clusters, allowed: Self.mostClusters)
    }
    refcounts = try RefcountReader(bytes, head)
    // One more: what starts in the last cluster may end in the one after it.
    references = ReferenceMap(clusterCount: clusters + 1)
  }

  private func run() throws(ToolError) {
    try countUses()
    checkRefcountTable()
    checkRefcountBlocks()
    try compareRefcounts()
  }

  /// Counts the references to everything but the refcount structures.
  func countUses() throws(ToolError) {
    result.totalClusters = geometry.clusters(covering: head.diskSize)
    add(.header, at: HostOffset(0), length: geometry.clusterSize)
    try checkMapping()
    try checkEncryptionHeader()
    try checkBitmaps()
  }

  func found(_ finding: CheckFinding) {
    result.count(finding.severity)
    report(finding)
  }

  /// Counts a reference to each cluster of a range.
  ///
  /// The last cluster of a file may be cut short; what lies further out is a finding, and takes
  /// no memory.
  func add(_ use: HostUse, at offset: HostOffset, length: UInt64, times: UInt64 = 1) {
    guard length > 0 else { return }
    let (end, overflow) = offset.bytes.addingReportingOverflow(length)
    guard !overflow, end < head.fileLength &+ geometry.clusterSize else {
      found(.beyondEnd(use: use, offset: offset, length: length))
      return
    }
    let last = geometry.hostCluster(of: HostOffset(end - 1))
    for cluster in geometry.hostCluster(of: offset)...last {
      let before = references.add(use, to: cluster, times: times)
      let fits = before == .nothing || (before == use && use.isShared)
      guard !fits || (times > 1 && !use.isShared) else { continue }
      if before != .conflict {
        found(
          .overlap(cluster: geometry.start(ofHostCluster: cluster), first: before, second: use))
      }
      references.markConflict(cluster)
    }
  }
}
