import Synchronization

/// How far a job has come: written by the job, read by anyone at any time.
///
/// Costs an atomic store. A reader may see the new total beside the old count, never a torn number.
package final class JobProgress: Sendable {
  /// What is counted; the raw value is its name in messages.
  package enum Unit: String, CaseIterable, Sendable {
    case bytes, clusters, steps
  }

  /// One moment.
  package struct Snapshot: Equatable, Sendable {
    /// What is done.
    package var done: UInt64
    /// All there is to do, as far as it is known; 0 before it is.
    package var total: UInt64
    /// What both count.
    package var unit: Unit

    /// A moment.
    package init(done: UInt64, total: UInt64, unit: Unit) {
      self.done = done
      self.total = total
      self.unit = unit
    }

    /// From 0 to 1; 0 while the total is not known.
    package var fraction: Double { total == 0 ? 0 : min(Double(done) / Double(total), 1) }
  }

  private let done = Atomic<UInt64>(0)
  private let total = Atomic<UInt64>(0)
  private let unit = Atomic<Int>(0)

  /// Nothing is done.
  package init() {}

  /// Says what there is to do, at the start or when more is found; nothing of it is done.
  package func begin(_ total: UInt64, _ unit: Unit) {
    self.unit.store(Unit.allCases.firstIndex(of: unit) ?? 0, ordering: .relaxed)
    done.store(0, ordering: .relaxed)
    self.total.store(total, ordering: .relaxed)
  }

  /// Notes that so much of the whole is done.
  package func reach(_ done: UInt64) { self.done.store(done, ordering: .relaxed) }

  /// Notes that so much more is done.
  package func advance(by count: UInt64) { done.wrappingAdd(count, ordering: .relaxed) }

  /// Notes how far a job elsewhere has come.
  package func follow(_ now: Snapshot) {
    begin(now.total, now.unit)
    reach(now.done)
  }

  /// How far it has come now.
  package var snapshot: Snapshot {
    Snapshot(
      done: done.load(ordering: .relaxed), total: total.load(ordering: .relaxed),
      unit: Unit.allCases[unit.load(ordering: .relaxed)])
  }
}
