import BlockCore

/// Mutual exclusion that may be held across I/O: waiters suspend, no thread ever blocks.
///
/// First come, first served. The owner hands over directly to the next waiter, which resumes on its
/// own worker.
@safe
final class AsyncMutex: @unchecked Sendable {  // why: `held` and `waiters` are guarded by `lock`
  private let lock = FutexLock(.leaf)
  private var held = false
  private var waiters: [UnsafeContinuation<Void, Never>] = unsafe []

  /// Takes the mutex, suspending while another task has it.
  func acquire() async {
    if tryAcquire() { return }
    unsafe await withUnsafeContinuation { continuation in
      let acquired = lock.withLock { () -> Bool in
        if !held {
          held = true
          return true
        }
        unsafe waiters.append(continuation)
        return false
      }
      if acquired { unsafe continuation.resume() }
    }
  }

  /// Takes the mutex if it is free.
  func tryAcquire() -> Bool {
    lock.withLock {
      if held { return false }
      held = true
      return true
    }
  }

  /// Gives the mutex to the longest waiter, or frees it.
  func release() {
    let next = unsafe lock.withLock { () -> UnsafeContinuation<Void, Never>? in
      assert(held, "a mutex is given back that nobody has")
      if unsafe waiters.isEmpty {
        held = false
        return nil
      }
      return unsafe waiters.removeFirst()
    }
    unsafe next?.resume()
  }

  /// Traps in debug builds if nobody has the mutex, which the caller must have.
  func assertHeld() { assert(lock.withLock { held }, "done without the mutex that guards it") }
}
