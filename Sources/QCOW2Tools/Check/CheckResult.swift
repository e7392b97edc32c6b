package import JSON

/// The verdict on an image, in qemu-img's terms.
package struct CheckResult: Equatable, Sendable {
  /// Parts of the image that could not be judged.
  package var checkErrors: UInt64 = 0
  /// Things that are wrong and endanger data.
  package var corruptions: UInt64 = 0
  /// Clusters whose refcount is too high: space that is lost.
  package var leaks: UInt64 = 0
  /// The end of the last cluster that is referred to or has a refcount.
  package var imageEndOffset: UInt64 = 0
  /// Of the virtual disk.
  package var totalClusters: UInt64 = 0
  /// Guest clusters of the active disk that have a host cluster.
  package var allocatedClusters: UInt64 = 0
  package var fragmentedClusters: UInt64 = 0
  package var compressedClusters: UInt64 = 0

  /// What a repair before the check has put right.
  package private(set) var corruptionsFixed: UInt64 = 0
  package private(set) var leaksFixed: UInt64 = 0

  package init() {}

  /// Reads ``json``; nil if it is not such an object.
  package init?(json: JSONValue) {
    guard json["check-errors"]?.unsigned != nil else { return nil }
    func count(_ name: String) -> UInt64 { json[name]?.unsigned ?? 0 }
    checkErrors = count("check-errors")
    corruptions = count("corruptions")
    leaks = count("leaks")
    imageEndOffset = count("image-end-offset")
    totalClusters = count("total-clusters")
    allocatedClusters = count("allocated-clusters")
    fragmentedClusters = count("fragmented-clusters")
    compressedClusters = count("compressed-clusters")
    corruptionsFixed = count("corruptions-fixed")
    leaksFixed = count("leaks-fixed")
  }

  /// Notes what was repaired before this check.
  package mutating func note(_ changes: RefcountChanges) {
    corruptionsFixed = changes.corruptions
    leaksFixed = changes.lowered
  }

  /// qemu-img's exit code.
  package var exitCode: Int32 {
    if checkErrors > 0 { return 1 }
    if corruptions > 0 { return 2 }
    return leaks > 0 ? 3 : 0
  }

  /// The same image with no other findings than these.
  package func with(_ findings: [CheckFinding]) -> CheckResult {
    var result = self
    (result.checkErrors, result.corruptions, result.leaks) = (0, 0, 0)
    for finding in findings { result.count(finding.severity) }
    return result
  }

  /// Counts a finding.
  mutating func count(_ severity: CheckFinding.Severity) {
    switch severity {
    case .corruption: corruptions &+= 1
    case .leak: leaks &+= 1
    case .unreadable: checkErrors &+= 1
    case .remark: break
    }
  }
}
