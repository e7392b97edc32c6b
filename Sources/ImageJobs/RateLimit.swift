import BlockCore
import Glibc
import Synchronization
import Uring

/// How many bytes a second a job may read or write.
///
/// Bytes are paid for after they were moved: the next wait lasts until their time is over. Whoever
/// waits suspends and leaves the worker's thread to others; a thread without a loop sleeps.
package final class RateLimit: Sendable {
  /// A cancelled job is noticed after so many milliseconds of a wait.
  private static let step = 50

  private let bytesPerSecond: Atomic<UInt64>
  /// When the bytes until now are paid for, by ``MonotonicClock``.
  private let paid = Mutex<UInt64>(0)

  /// A limit; 0 for none.
  package init(bytesPerSecond: UInt64 = 0) { self.bytesPerSecond = Atomic(bytesPerSecond) }

  /// Another limit for the bytes to come; 0 for none.
  package func set(bytesPerSecond: UInt64) {
    self.bytesPerSecond.store(bytesPerSecond, ordering: .relaxed)
  }

  /// Waits until so many more bytes are within the limit.
  ///
  /// - Throws: ``JobError/cancelled``, soon after the job was cancelled.
  func wait(afterBytes count: UInt64, _ cancellation: JobCancellation) async throws(JobError) {
    let limit = bytesPerSecond.load(ordering: .relaxed)
    guard limit > 0, count > 0 else { return }
    // Bounded, so that adding up cannot overflow: an hour for what takes longer.
    let time = UInt64(min(Double(count) / Double(limit), 3600) * 1e9)
    let end = paid.withLock { paid in
      paid = max(paid, MonotonicClock.nanoseconds()) + time
      return paid
    }
    while true {
      let now = MonotonicClock.nanoseconds()
      if now >= end { return }
      try cancellation.check()
      await pauseJob(milliseconds: min(Int((end - now) / 1_000_000) + 1, Self.step))
    }
  }
}

/// Lets a job rest: the worker's thread goes on with others, a thread without a loop sleeps.
package func pauseJob(milliseconds: Int) async {
  if let loop = WorkerLoop.current, await loop.sleep(milliseconds: milliseconds) { return }
  usleep(UInt32(milliseconds) * 1000)
}
