import CPlatform
public import Synchronization

/// A small mutual-exclusion lock that can live in raw memory: one 32-bit word, no owner, no
/// fairness.
///
/// Word values: 0 free, 1 held, 2 held with possible sleepers. Written here instead of using
/// `Synchronization.Mutex` because the standard library's lock is not instrumented by the thread
/// sanitizer on Linux, which would then report every access that it protects.
public struct FutexLock: ~Copyable, Sendable {
  @usableFromInline let word = Atomic<UInt32>(0)
  #if DEBUG || LOCK_STATISTICS
    @usableFromInline let rank: LockRank
  #endif
  #if LOCK_STATISTICS
    /// When the lock was taken; for its holder.
    @usableFromInline let taken = Atomic<UInt64>(0)
  #endif

  public init(_ rank: LockRank) {
    #if DEBUG || LOCK_STATISTICS
      self.rank = rank
    #endif
  }

  /// Takes the lock, sleeping while another thread has it.
  @inlinable public func lock() {
    #if DEBUG
      if lockInTurn() { return }
      rank.willLock()
    #endif
    #if LOCK_STATISTICS
      lockCounted()
    #else
      if word.compareExchange(expected: 0, desired: 1, ordering: .acquiring).exchanged { return }
      lockContended()
    #endif
  }

  #if DEBUG
    /// Takes the lock as the test of this thread says; false if no test does.
    @usableFromInline func lockInTurn() -> Bool {
      guard let turns = unsafe Turns.ofThread else { return false }
      turns.pass(.lock)
      rank.willLock()
      while !word.compareExchange(expected: 0, desired: 1, ordering: .acquiring).exchanged {
        turns.waitForLock()
      }
      return true
    }
  #endif

  #if LOCK_STATISTICS
    @usableFromInline func lockCounted() {
      if !word.compareExchange(expected: 0, desired: 1, ordering: .acquiring).exchanged {
        let start = MonotonicClock.nanoseconds()
        lockContended()
        LockStatistics.noteWait(rank, nanoseconds: MonotonicClock.nanoseconds() &- start)
      }
      taken.store(MonotonicClock.nanoseconds(), ordering: .relaxed)
    }

    @usableFromInline func unlockCounted() {
      let start = taken.load(ordering: .relaxed)
      let end = MonotonicClock.nanoseconds()
      if word.exchange(0, ordering: .releasing) == 2 { wakeOne() }
      LockStatistics.noteHold(rank, nanoseconds: end &- start)
    }
  #endif

  @usableFromInline func lockContended() {
    for _ in 0..<100 {
      if word.load(ordering: .relaxed) == 0,
        word.compareExchange(expected: 0, desired: 1, ordering: .acquiring).exchanged
      {
        return
      }
    }
    while word.exchange(2, ordering: .acquiring) != 0 {
      unsafe withUnsafePointer(to: self) { unsafe qublk_futex_wait($0, 2) }
    }
  }

  /// Gives the lock back and wakes one sleeper, if there is any.
  @inlinable public func unlock() {
    #if DEBUG
      rank.didUnlock()
    #endif
    #if LOCK_STATISTICS
      unlockCounted()
    #else
      if word.exchange(0, ordering: .releasing) == 2 { wakeOne() }
    #endif
  }

  @usableFromInline func wakeOne() {
    unsafe withUnsafePointer(to: self) { unsafe qublk_futex_wake($0, 1) }
  }

  /// Runs `body` with the lock held.
  ///
  /// `body` must not wait for anything.
  @inlinable public func withLock<R: ~Copyable, E: Error>(
    _ body: () throws(E) -> R
  ) throws(E) -> R {
    lock()
    defer { unlock() }
    return try body()
  }
}
