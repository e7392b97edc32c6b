import Synchronization

/// What becomes of clusters that a session which died has left reserved.
package enum LeakState: Int, Sendable, CaseIterable {
  /// Nobody has asked for them.
  case none
  /// Metadata is being read.
  case looking
  /// Refcounts go down.
  case returning
  /// There are none any more.
  case done
  /// The work has ended before it was done.
  case left

  /// As in JSON and in `stats`.
  package var name: String {
    switch self {
    case .none: "none"
    case .looking: "looking"
    case .returning: "returning"
    case .done: "done"
    case .left: "left"
    }
  }
}

extension Image {
  /// Notes how far the return of leaks has come, for statistics.
  package func note(_ state: LeakState) { leaks.state.store(state.rawValue, ordering: .relaxed) }

  /// Reports damage that no request has met, and that stops nothing.
  package func reportDamage(_ problem: String) {
    health.reporter?.note(.damaged) { $0.problem = problem }
  }
}

/// How far the return of leaks has come.
final class LeakProgress: Sendable {
  /// The raw value of a ``LeakState``.
  let state = Atomic<Int>(0)
  /// Clusters that were given back.
  let returned = Atomic<UInt64>(0)
}
