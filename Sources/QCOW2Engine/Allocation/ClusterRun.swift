import BlockCore

/// Consecutive host clusters that were reserved together.
struct ClusterRun: Sendable, Equatable {
  var start: HostCluster
  var count: UInt64
  /// Nothing was ever written there and the host file reads as zeros: no zeroing is needed.
  var isFresh: Bool

  var end: HostCluster { start + count }

  /// Whether all of a range that is not empty lies in the run.
  func contains(_ range: Range<HostCluster>) -> Bool {
    start <= range.lowerBound && range.upperBound <= end
  }

  /// Splits off the first `wanted` clusters, or all if there are fewer.
  mutating func take(_ wanted: UInt64) -> ClusterRun {
    let taken = ClusterRun(start: start, count: min(wanted, count), isFresh: isFresh)
    start += taken.count
    count &-= taken.count
    return taken
  }
}
