/// Counts the events of one simulation, so that logs of different layers can be compared.
package final class LogicalClock: @unchecked Sendable {  // why: one thread per simulation
  package private(set) var now: UInt64 = 0

  package init() {}

  /// The time of a new event.
  package func tick() -> UInt64 {
    now += 1
    return now
  }
}
