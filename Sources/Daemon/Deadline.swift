import BlockCore
import Glibc

/// A moment in monotonic time, after which waiting is over; a negative distance is now.
struct Deadline {
  private let nanoseconds: UInt64

  init(seconds: Double) { nanoseconds = Self.now + UInt64(max(seconds, 0) * 1e9) }

  var hasPassed: Bool { Self.now >= nanoseconds }

  /// What is left, for poll(2): 0 when the moment has passed.
  var milliseconds: Int32 {
    let now = Self.now
    return now >= nanoseconds ? 0 : Int32(clamping: (nanoseconds - now) / 1_000_000 + 1)
  }

  private static var now: UInt64 { MonotonicClock.nanoseconds() }
}

/// Asks `condition` every few milliseconds until it holds.
///
/// - Returns: Whether it held before `seconds` were over.
package func wait(seconds: Double, until condition: () -> Bool) -> Bool {
  let deadline = Deadline(seconds: seconds)
  while !condition() {
    if deadline.hasPassed { return false }
    usleep(5000)
  }
  return true
}
