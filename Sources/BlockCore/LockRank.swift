import CPlatform

/// The order in which locks may nest (docs/design.md, section 4): a thread takes them in rising rank
/// only.
///
/// Debug builds keep the ranks that the thread holds in a thread-local bit set and trap on a lock
/// taken out of order; release builds keep nothing.
public enum LockRank: UInt8, Sendable {
  case flushRound, inFlight, slice, leaf

  public func willLock() {
    let held = qublk_thread_ranks()
    precondition(held >> UInt64(rawValue) == 0, "lock \(self) taken out of rank order")
    qublk_set_thread_ranks(held | (1 << UInt64(rawValue)))
  }

  public func didUnlock() {
    qublk_set_thread_ranks(qublk_thread_ranks() & ~(1 << UInt64(rawValue)))
  }
}
