package import Synchronization

/// What one queue has done since its start; written by its worker, read by anyone.
package final class QueueCounters: Sendable {
  package let reads = Counter()
  package let readBytes = Counter()
  package let writes = Counter()
  package let writtenBytes = Counter()
  package let flushes = Counter()
  package let discards = Counter()
  package let zeroWrites = Counter()
  /// Requests that ended with an error.
  package let failures = Counter()
  /// Requests that the hit path could not answer.
  package let slowRequests = Counter()
  /// Requests whose pages were not registered, under zero copy.
  package let unregisteredRequests = Counter()

  package init() {}
}

/// A counter with one writer.
package struct Counter: ~Copyable, Sendable {
  @usableFromInline let value = Atomic<UInt64>(0)

  @inlinable package init() {}

  /// Adds by plain loads and stores, since nobody else writes; wraps at 2^64.
  @inlinable package func add(_ amount: UInt64 = 1) {
    value.store(value.load(ordering: .relaxed) &+ amount, ordering: .relaxed)
  }

  @inlinable package var current: UInt64 { value.load(ordering: .relaxed) }
}
