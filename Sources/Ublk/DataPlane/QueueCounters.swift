package import BlockCore
import Glibc
package import Uring

/// What one queue has done since its start; written by its worker, read by anyone.
///
/// A request counts as arrived when the driver hands it over, and as completed when its result goes
/// back; latency is the time in between, by the clock of the loop's turns (``WorkerLoop/now``).
@safe
package final class QueueCounters: @unchecked Sendable {
  // why: all memory is atomics, and stays until deinit.

  /// Requests that the driver handed over.
  package let arrivals = Counter()
  /// Requests that ended with an error; those refused as malformed have no latency.
  package let failures = Counter()
  /// Requests refused as malformed.
  package let refusals = Counter()
  /// Commands that the driver refused, those that were sent again with success too.
  package let driverErrors = Counter()
  /// Transfers with host files that the hit path started.
  package let transfers = Counter()
  /// Requests whose pages were not registered, under zero copy.
  package let unregisteredRequests = Counter()
  /// Requests whose data went through memory of ours, under zero copy.
  package let userCopies = Counter()
  /// The worker's loop.
  package let loop = LoopCounters()
  @usableFromInline let latencies = LatencyHistograms(count: QueueCounters.operationCount)
  private let slow: UnsafeMutablePointer<Counter>

  /// The number of values of ``BlockOperation``.
  private static let operationCount = Int(BlockOperation.writeZeroes.rawValue) + 1

  package init() {
    unsafe slow = .allocate(capacity: Self.operationCount)
    for number in 0..<Self.operationCount {
      unsafe (slow + number).initialize(to: Counter())
    }
  }

  deinit {
    unsafe slow.deallocate()
  }

  // MARK: The worker's side

  /// A request has ended after so many nanoseconds; `bytes` are those of its success.
  @inlinable @inline(__always)
  package func noteEnd(_ operation: BlockOperation, nanoseconds: UInt64, bytes: UInt64) {
    latencies.record(nanoseconds, bytes: bytes, in: Int(operation.rawValue))
  }

  /// The hit path could not answer a request.
  package func noteSlow(_ operation: BlockOperation) {
    unsafe slow[Int(operation.rawValue)].add()
  }

  // MARK: Everyone's side

  /// The latencies of all requests of one kind that have ended.
  package func latency(_ operation: BlockOperation) -> LatencySnapshot {
    latencies.snapshot(of: Int(operation.rawValue))
  }

  /// The bytes of the requests of one kind that have succeeded.
  package func bytes(_ operation: BlockOperation) -> UInt64 {
    latencies.bytes(of: Int(operation.rawValue))
  }

  /// The requests of one kind that the hit path could not answer.
  package func slowRequests(_ operation: BlockOperation) -> UInt64 {
    unsafe slow[Int(operation.rawValue)].current
  }
}
