import Glibc

/// CLOCK_MONOTONIC, in nanoseconds.
public enum NanosecondClock {
  /// Nanoseconds since some fixed moment; a read of the vDSO where the kernel has a clock for it.
  public static func now() -> UInt64 {
    var time = timespec()
    unsafe clock_gettime(CLOCK_MONOTONIC, &time)
    return UInt64(time.tv_sec) &* 1_000_000_000 &+ UInt64(time.tv_nsec)
  }
}
