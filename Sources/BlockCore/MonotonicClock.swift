import Glibc

/// The program's one clock, which only goes forward; moments count from some fixed one.
public enum MonotonicClock {
  /// Nanoseconds of CLOCK_MONOTONIC; a read of the vDSO where the kernel has a clock for it.
  public static func nanoseconds() -> UInt64 {
    var time = timespec()
    unsafe clock_gettime(CLOCK_MONOTONIC, &time)
    return UInt64(time.tv_sec) &* 1_000_000_000 &+ UInt64(time.tv_nsec)
  }

  /// Milliseconds of the same clock.
  public static func milliseconds() -> UInt64 { nanoseconds() / 1_000_000 }

  /// Milliseconds to the kernel's tick, some of them late, for a few instructions; never 0.
  public static func coarseMilliseconds() -> UInt64 {
    var time = timespec()
    unsafe clock_gettime(CLOCK_MONOTONIC_COARSE, &time)
    return UInt64(time.tv_sec) &* 1000 &+ UInt64(time.tv_nsec) / 1_000_000 &+ 1
  }
}
