import BlockCore
import Synchronization

/// Keeps requests out while one task has the image to itself, and tells when requests end.
///
/// Works together with ``RequestStamps``. A request sets its stamp, then looks at the gate; whoever
/// closes the gate shuts it, then looks at the stamps. Both are sequentially consistent, so either
/// the request finds the gate shut and turns back, or its stamp is seen and waited for. In the same
/// way a request that ends clears its stamp, then looks at the gate, and wakes the closer if need
/// be.
///
/// One byte says both that the gate is shut and that somebody waits for requests to end. A request
/// looks at that byte when it enters and when it ends, whether anybody waits or not: waiting costs
/// requests nothing while nobody does.
///
/// Only one task closes the gate at a time; ``Image/exclusively(_:)`` sees to that.
final class RequestGate: @unchecked Sendable {  // why: `lock` guards the lists of waiters
  private static let shut: UInt8 = 1
  /// Some task waits for requests to end, at an open gate.
  private static let watched: UInt8 = 2
  private let state = Atomic<UInt8>(0)
  private let lock = FutexLock(.leaf)
  /// Requests that wait for the gate to open.
  private var outside = WaitList()
  /// The closer, who waits for requests to end.
  private var inside = WaitList()
  private var watchers = 0
  private let gracePeriods = GracePeriods()

  /// Call after setting the request's stamp.
  @inline(__always) var isOpen: Bool {
    state.load(ordering: .sequentiallyConsistent) & Self.shut == 0
  }

  /// Nobody waits for requests to end; call after clearing the request's stamp.
  @inline(__always) var isQuiet: Bool { state.load(ordering: .sequentiallyConsistent) == 0 }

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
    state.bitwiseOr(Self.shut, ordering: .sequentiallyConsistent)
    while true {
      let seen = lock.withLock { inside.version }
      if stamps.oldest() == .max { return }
      await wait(\.inside, since: seen)
    }
  }

  /// Lets requests in again.
  func open() {
    assert(!isOpen, "the gate is opened twice")
    state.bitwiseAnd(~Self.shut, ordering: .sequentiallyConsistent)
    wake(\.outside)
  }

  /// Waits until every request whose stamp is at most `stamp` has ended, whether the gate is open or
  /// shut.
  ///
  /// - Throws: `CancellationError` if the task is cancelled first.
  func quiesce(_ stamps: RequestStamps, after stamp: UInt64) async throws(CancellationError) {
    watch()
    defer { unwatch() }
    // A slot that was seen free, or with a later request, has no request from before any more.
    var slot = 0
    while let busy = stamps.firstInFlight(upTo: stamp, from: slot) {
      if Task.isCancelled { throw CancellationError() }
      await gracePeriods.wait(for: busy) { stamps.isInFlight(busy, upTo: stamp) }
      slot = busy
    }
  }

  /// The request with that index among all slots has ended, or turned back, and its stamp is
  /// cleared; call if the gate is not quiet.
  func noteExit(_ index: Int) {
    if !isOpen { wake(\.inside) }
    gracePeriods.noteExit(index)
  }

  private func watch() {
    lock.withLock {
      watchers += 1
      state.bitwiseOr(Self.watched, ordering: .sequentiallyConsistent)
    }
  }

  private func unwatch() {
    lock.withLock {
      watchers -= 1
      if watchers == 0 { state.bitwiseAnd(~Self.watched, ordering: .sequentiallyConsistent) }
    }
  }

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
