import BlockCore
import Glibc
import QCOW2Tools
import Synchronization

/// How much of the host's time the return of leaks takes, so that guests come first.
///
/// After each read it rests for as long as the read took, and for longer if it reads more than so many bytes a
/// second: a host that is slow, because guests keep it busy, is asked less often.
package final class LeakPace: Sendable {
  /// In bytes a second: all metadata of an image of a terabyte in a few seconds.
  package static let standard: UInt64 = 64 << 20
  /// A rest is no longer, in nanoseconds, so that a cancellation is noticed.
  private static let longestRest: UInt64 = 50_000_000

  private let bytesPerSecond: UInt64
  private let isHurried = Atomic<Bool>(false)

  /// Reads at most so many bytes a second.
  package init(bytesPerSecond: UInt64 = LeakPace.standard) { self.bytesPerSecond = bytesPerSecond }

  /// No rest from now on: nobody else wants the host.
  package func hurry() { isHurried.store(true, ordering: .relaxed) }

  private var isResting: Bool { !isHurried.load(ordering: .relaxed) }

  /// Rests after so many nanoseconds of work; other tasks of the thread go on.
  func rest(after nanoseconds: UInt64) async {
    if isResting {
      await pauseJob(milliseconds: Int(min(nanoseconds, Self.longestRest) / 1_000_000) + 1)
    }
  }

  /// Sleeps after a read; the thread has nothing else to do.
  func sleep(afterBytes count: Int, in nanoseconds: UInt64) {
    if !isResting { return }
    let paid = UInt64(count) * 1_000_000_000 / max(bytesPerSecond, 1)
    let rest = min(max(paid, nanoseconds), Self.longestRest)
    // Shorter sleeps take longer than they should, and the next read makes up for them.
    if rest >= 50_000 { usleep(UInt32(rest / 1000)) }
  }
}

/// The bytes of an image, read at a pace; a read fails once the job is cancelled.
final class PacedBytes: ImageBytes {
  private let bytes: any ImageBytes
  private let pace: LeakPace
  private let cancellation: JobCancellation

  init(_ bytes: any ImageBytes, _ pace: LeakPace, _ cancellation: JobCancellation) {
    self.bytes = bytes
    self.pace = pace
    self.cancellation = cancellation
  }

  var length: UInt64 { bytes.length }

  func read(
    into buffer: UnsafeMutableRawBufferPointer, at offset: HostOffset
  ) throws(ToolError) {
    if cancellation.isCancelled { throw .cancelled }
    let start = MonotonicClock.nanoseconds()
    try unsafe bytes.read(into: buffer, at: offset)
    pace.sleep(afterBytes: buffer.count, in: MonotonicClock.nanoseconds() &- start)
  }
}
