/// Second chances of I/O that the kernel has turned away for now.
extension Errno {
  /// EINTR or EAGAIN: the same I/O may succeed in a moment.
  @inlinable public var isTransient: Bool { self == .interrupted || self == .again }

  /// How long to wait before I/O that failed with this error is tried again.
  ///
  /// Waits grow, to about half a second in all. A signal is no reason to wait at first.
  ///
  /// - Parameter attempt: How often it was tried again before.
  /// - Returns: Milliseconds; nil if it has failed for good.
  public func pause(beforeAttempt attempt: Int) -> Int? {
    guard isTransient, attempt < 64 else { return nil }
    return self == .interrupted && attempt < 15 ? 0 : (attempt + 1) / 4
  }
}
