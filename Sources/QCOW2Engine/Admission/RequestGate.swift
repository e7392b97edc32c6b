import BlockCore
import Synchronization

/// Keeps requests out while one task has the image to itself.
///
/// Works together with ``RequestStamps``. A request sets its stamp, then looks at the gate; whoever
/// closes the gate shuts it, then looks at the stamps. Both are sequentially consistent, so either
/// the request finds the gate shut and turns back, or its stamp is seen and waited for. In the same
/// way a request that ends clears its stamp, then looks at the gate, and wakes the closer if need
/// be.
///
/// Only one task closes the gate at a time; ``Image/administration`` sees to that.
final class RequestGate: @unchecked Sendable {  // why: `lock` guards the lists of waiters
  private let isShut = Atomic<Bool>(false)
  private let lock = FutexLock(.leaf)
  /// Requests that wait for the gate to open.
  private var outside = WaitList()
  /// The closer, who waits for requests to end.
  private var inside = WaitList()

  /// Call after setting the request's stamp, or clearing it.
  @inline(__always) var isOpen: Bool { !isShut.load(ordering: .sequentiallyConsistent) }

  /// Waits until the gate is open; the caller's stamp must be cleared.
  func waitUntilOpen() async {
    while true {
      let seen = lock.withLock { outside.version }
      if isOpen { return }
      await wait(\.outside, since: seen)
    }
  }

  /// Shuts the gate, then waits until no request is in flight.
  func close(_ stamps: RequestStamps) async {
    assert(isOpen, "the gate is closed twice")
    isShut.store(true, ordering: .sequentiallyConsistent)
    while true {
      let seen = lock.withLock { inside.version }
      if stamps.oldest() == .max { return }
      await wait(\.inside, since: seen)
    }
  }

  /// Lets requests in again.
  func open() {
    assert(!isOpen, "the gate is opened twice")
    isShut.store(false, ordering: .sequentiallyConsistent)
    wake(\.outside)
  }

  /// A request has ended, or turned back, and its stamp is cleared.
  func noteExit() { wake(\.inside) }

  private func wait(
    _ list: ReferenceWritableKeyPath<RequestGate, WaitList>, since seen: UInt64
  ) async {
    unsafe await withUnsafeContinuation { continuation in
      let waits = lock.withLock { unsafe self[keyPath: list].add(continuation, ifStill: seen) }
      if !waits { unsafe continuation.resume() }
    }
  }

  private func wake(_ list: ReferenceWritableKeyPath<RequestGate, WaitList>) {
    let waiters = unsafe lock.withLock { unsafe self[keyPath: list].takeAll() }
    unsafe waiters.forEach { unsafe $0.resume() }
  }
}
