import BlockCore
import QCOW2Tools
import Synchronization

/// What one check of a host file has found while an engine had it open.
struct CheckLook {
  /// Findings that are kept: more are no use to anybody.
  static let most = 1 << 16

  let result: Result<CheckResult, ToolError>
  /// The first of them.
  private(set) var findings: [CheckFinding] = []
  private(set) var count = 0

  /// Checks the image; `setAside` are host clusters that may have a reference which no table shows.
  init(
    _ bytes: FileBytes, _ setAside: [Range<HostCluster>], isCancelled: @escaping () -> Bool
  ) {
    let found = Found()
    do throws(ToolError) {
      result = .success(
        try ImageCheck.run(
          bytes, report: { found.add($0) }, reserved: setAside, isCancelled: isCancelled))
    } catch { result = .failure(error) }
    (findings, count) = (found.findings, found.count)
  }

  /// Some findings were not kept.
  var isCutShort: Bool { count > findings.count }

  /// Those of other findings that this look has, too.
  func confirmed(_ others: [CheckFinding]) -> [CheckFinding] {
    let own = Set(findings.map(\.message))
    return others.filter { own.contains($0.message) }
  }

  private final class Found {
    var findings: [CheckFinding] = []
    var count = 0

    func add(_ finding: CheckFinding) {
      count += 1
      if count <= CheckLook.most { findings.append(finding) }
    }
  }
}
