public import BlockCore
import Glibc
public import Uring

/// What one queue has done since its start; written by its worker, read by anyone.
///
/// A request counts as arrived when the driver hands it over, and as completed when its result goes
/// back; latency is the time in between, by the clock of the loop's turns (``WorkerLoop/now``).
@safe
public final class QueueCounters: @unchecked Sendable {
  // why: all memory is atomics, and stays until deinit.

  /// Requests that the driver handed over.
  public let arrivals = Counter()
  /// Requests that ended with an error; those refused as malformed have no latency.
  public let failures = Counter()
  /// Requests refused as malformed.
  public let refusals = Counter()
  /// Commands that the driver refused, also if a later attempt succeeded.
  public let driverErrors = Counter()
  /// Transfers with host files that the hit path started.
  public let transfers = Counter()
  /// Requests whose pages were not registered, under zero copy.
  public let unregisteredRequests = Counter()
  /// Requests whose data went through the daemon's memory, under zero copy.
  public let userCopies = Counter()
  /// The worker's loop.
  public let loop = LoopCounters()
  @usableFromInline let latencies = LatencyHistograms(count: QueueCounters.operationCount)
  private let slow: UnsafeMutablePointer<Counter>

  /// The number of values of ``BlockOperation``.
  private static let operationCount = Int(BlockOperation.writeZeroes.rawValue) + 1

  public init() {
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
  public func noteEnd(_ operation: BlockOperation, nanoseconds: UInt64, bytes: UInt64) {
    latencies.record(nanoseconds, bytes: bytes, in: Int(operation.rawValue))
  }

  /// The hit path could not answer a request.
  public func noteSlow(_ operation: BlockOperation) {
    unsafe slow[Int(operation.rawValue)].add()
  }

  // MARK: Everyone's side

  /// The latencies of all requests of one kind that have ended.
  public func latency(_ operation: BlockOperation) -> LatencySnapshot {
    latencies.snapshot(of: Int(operation.rawValue))
  }

  /// The bytes of the requests of one kind that have succeeded.
  public func bytes(_ operation: BlockOperation) -> UInt64 {
    latencies.bytes(of: Int(operation.rawValue))
  }

  /// The requests of one kind that the hit path could not answer.
  public func slowRequests(_ operation: BlockOperation) -> UInt64 {
    unsafe slow[Int(operation.rawValue)].current
  }
}
