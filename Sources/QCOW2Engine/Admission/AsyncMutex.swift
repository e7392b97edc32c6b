import BlockCore

/// Mutual exclusion that may be held across I/O: waiters suspend, no thread ever blocks.
///
/// Nearly first come, first served. The longest waiter is woken when the mutex is free, and a newcomer
/// may take it before the waiter's thread runs. A waiter that was woken in vain gets the mutex at the
/// next release, so each waiter is passed over in one wake-up at most. If each release handed the
/// mutex over, nobody could use it until the waiter's thread runs, which takes milliseconds on a busy
/// machine: all tasks would then queue for every single use.
@safe
package final class AsyncMutex: @unchecked Sendable {  // why: `lock` guards all mutable state
  @safe
  private struct Waiter {
    /// Resumed with true by an owner who hands the mutex over, with false to try again.
    let continuation: UnsafeContinuation<Bool, Never>
    /// Was woken once in vain: the next release is for this waiter.
    let wasPassedOver: Bool
  }

  private let lock = FutexLock(.leaf)
  private var held = false
  private var waiters: [Waiter] = []
  /// A waiter has been woken and has not tried yet.
  private var isWaking = false

  /// Nobody has it.
  package init() {}

  /// Takes the mutex, suspending while another task has it.
  package func acquire() async {
    if tryAcquire() { return }
    var wasWoken = false
    while unsafe await !withUnsafeContinuation({ unsafe takeOrWait($0, wasWoken: wasWoken) }) {
      wasWoken = true
    }
  }

  /// Takes the mutex and resumes with true, or leaves the continuation with the waiters.
  private func takeOrWait(_ continuation: UnsafeContinuation<Bool, Never>, wasWoken: Bool) {
    let acquired = lock.withLock { () -> Bool in
      if wasWoken { isWaking = false }
      if !held {
        held = true
        return true
      }
      let waiter = unsafe Waiter(continuation: continuation, wasPassedOver: wasWoken)
      waiters.insert(waiter, at: wasWoken ? 0 : waiters.count)
      return false
    }
    if acquired { unsafe continuation.resume(returning: true) }
  }

  /// Takes the mutex if it is free.
  func tryAcquire() -> Bool {
    lock.withLock {
      if held { return false }
      held = true
      return true
    }
  }

  /// Frees the mutex and wakes the longest waiter, or hands the mutex to a waiter that was passed over.
  package func release() {
    let next = lock.withLock { () -> Waiter? in
      assert(held, "a mutex is given back that nobody has")
      if waiters.first?.wasPassedOver == true { return waiters.removeFirst() }
      held = false
      if waiters.isEmpty || isWaking { return nil }
      isWaking = true
      return waiters.removeFirst()
    }
    guard let next else { return }
    unsafe next.continuation.resume(returning: next.wasPassedOver)
  }

  /// Traps in debug builds if nobody has the mutex, which the caller must have.
  func assertHeld() { assert(lock.withLock { held }, "done without the mutex that guards it") }
}
