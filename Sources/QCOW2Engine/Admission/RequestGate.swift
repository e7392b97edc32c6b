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
/// requests nothing while nobody does. The same byte says that persistent bitmaps must be told of
/// writes: what is planned without a look at them is planned only while it does not.
///
/// Only one task closes the gate at a time; ``Image/exclusively(_:)`` sees to that.
final class RequestGate: @unchecked Sendable {  // why: `lock` guards the lists of waiters
  private static let shut: UInt8 = 1
  /// Some task waits for requests to end, at an open gate.
  private static let watched: UInt8 = 2
  /// Persistent bitmaps follow what requests change.
  private static let tracks: UInt8 = 4
  private let state = Atomic<UInt8>(0)
  private let lock = FutexLock(.leaf)
  /// Requests that wait for the gate to open.
  private var outside = WaitList()
  /// The closer, who waits for requests to end.
  private var inside = WaitList()
  private var watchers = 0
  private let gracePeriods = GracePeriods()
  /// When the gate was shut; only its closer looks.
  private let shutAt = Atomic<UInt64>(0)
  /// How often the gate was shut and opened again.
  let pauses = Atomic<UInt64>(0)
  /// The longest time from shutting to opening it, in nanoseconds.
  let longestPause = Atomic<UInt64>(0)

  /// Call after setting the request's stamp.
  @inline(__always) var isOpen: Bool {
    YieldPoint.gate.pass()
    return state.load(ordering: .sequentiallyConsistent) & Self.shut == 0
  }

  /// The same for a request that, as a write, does not ask the bitmaps.
  @inline(__always) func isOpen(untracked isWrite: Bool) -> Bool {
    YieldPoint.gate.pass()
    let barred = isWrite ? Self.shut | Self.tracks : Self.shut
    return state.load(ordering: .sequentiallyConsistent) & barred == 0
  }

  /// Nobody waits for requests to end; call after clearing the request's stamp.
  @inline(__always) var isQuiet: Bool {
    YieldPoint.gate.pass()
    return state.load(ordering: .sequentiallyConsistent) & (Self.shut | Self.watched) == 0
  }

  /// Says whether bitmaps must be told of writes; true for all requests whose stamps are younger.
  func setTracking(_ isOn: Bool) {
    YieldPoint.gate.pass()
    if isOn {
      state.bitwiseOr(Self.tracks, ordering: .sequentiallyConsistent)
    } else {
      state.bitwiseAnd(~Self.tracks, ordering: .sequentiallyConsistent)
    }
  }

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
    shutAt.store(MonotonicClock.nanoseconds(), ordering: .relaxed)
    YieldPoint.gate.pass()
    state.bitwiseOr(Self.shut, ordering: .sequentiallyConsistent)
    while true {
      let seen = lock.withLock { inside.version }
      if stamps.oldest() == .max { return }
      await wait(\.inside, since: seen)
    }
  }

  /// Lets requests in again.
  ///
  /// - Returns: For how many nanoseconds they were kept out.
  @discardableResult
  func open() -> UInt64 {
    assert(!isOpen, "the gate is opened twice")
    let pause = MonotonicClock.nanoseconds() &- shutAt.load(ordering: .relaxed)
    longestPause.max(pause, ordering: .relaxed)
    pauses.wrappingAdd(1, ordering: .relaxed)
    YieldPoint.gate.pass()
    state.bitwiseAnd(~Self.shut, ordering: .sequentiallyConsistent)
    wake(\.outside)
    return pause
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
      YieldPoint.gate.pass()
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
