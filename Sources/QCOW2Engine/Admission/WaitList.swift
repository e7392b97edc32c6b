/// Tasks that wait for a change to something guarded by a lock.
///
/// The holder of that lock bumps ``version`` with every change; a task that saw a version under the
/// lock waits only if it is still the current one, so no change is missed.
@safe
struct WaitList {
  private(set) var version: UInt64 = 0
  private var waiters: [UnsafeContinuation<Void, Never>] = unsafe []

  /// Registers `continuation` unless something changed since `seen`; call under the lock.
  ///
  /// - Returns: false if the caller must resume the continuation itself, after unlocking.
  mutating func add(_ continuation: UnsafeContinuation<Void, Never>, ifStill seen: UInt64) -> Bool {
    if version != seen { return false }
    unsafe waiters.append(continuation)
    return true
  }

  /// Notes a change and takes those to resume after unlocking; call under the lock.
  mutating func takeAll() -> [UnsafeContinuation<Void, Never>] {
    version &+= 1
    if unsafe waiters.isEmpty { return unsafe [] }
    let all = unsafe waiters
    unsafe waiters.removeAll(keepingCapacity: true)
    return unsafe all
  }
}
