import Glibc

/// A clock that only goes forward.
enum MonotonicClock {
  /// Milliseconds since some fixed moment; never 0.
  static func milliseconds() -> UInt64 {
    var now = timespec()
    unsafe clock_gettime(CLOCK_MONOTONIC_COARSE, &now)
    return UInt64(now.tv_sec) &* 1000 &+ UInt64(now.tv_nsec) / 1_000_000 &+ 1
  }
}
