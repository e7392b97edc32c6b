import BlockCore
import Synchronization

/// Tasks that wait until every request that began before some moment has ended.
///
/// Nobody is woken by a timer. The task waits for one slot after the other, and the request in that
/// slot wakes it when it ends. Requests in all other slots look at one word more, and only while
/// somebody waits: see ``RequestGate``. So the wait ends as soon as the last of those requests does.
final class GracePeriods: @unchecked Sendable {  // why: `lock` guards all but the atomic
  @safe private struct Waiter {
    let number: UInt64
    /// The index of the slot that is waited for.
    let slot: Int
    let continuation: UnsafeContinuation<Void, Never>
  }

  private let lock = FutexLock(.leaf)
  private var waiters: [Waiter] = []
  private var lastNumber: UInt64 = 0
  /// A bit for each slot that is waited for, by the last six bits of its index.
  private let slots = Atomic<UInt64>(0)

  private static func bit(_ slot: Int) -> UInt64 { 1 << UInt64(slot & 63) }

  /// Waits until ``noteExit(_:)`` is called for `slot`, or the task is cancelled.
  ///
  /// The waiter is registered before `isBusy` is asked, and a request clears its stamp before it calls
  /// ``noteExit(_:)``, so no end is missed.
  func wait(for slot: Int, while isBusy: () -> Bool) async {
    let number = lock.withLock { () -> UInt64 in
      lastNumber += 1
      return lastNumber
    }
    await withTaskCancellationHandler {
      unsafe await withUnsafeContinuation { continuation in
        unsafe add(Waiter(number: number, slot: slot, continuation: continuation))
        if Task.isCancelled || !isBusy() { wake { $0.number == number } }
      }
    } onCancel: {
      wake { $0.number == number }
    }
  }

  /// The request in `slot` has ended, and its stamp is cleared.
  func noteExit(_ slot: Int) {
    YieldPoint.gate.pass()
    if slots.load(ordering: .sequentiallyConsistent) & Self.bit(slot) == 0 { return }
    wake { $0.slot == slot }
  }

  private func add(_ waiter: Waiter) {
    lock.withLock {
      waiters.append(waiter)
      noteSlots()
    }
  }

  /// Whoever takes a waiter out of the list resumes it, once.
  private func wake(_ isMeant: (Waiter) -> Bool) {
    let woken = lock.withLock { () -> [Waiter] in
      let woken = waiters.filter(isMeant)
      if woken.isEmpty { return [] }
      waiters.removeAll(where: isMeant)
      noteSlots()
      return woken
    }
    for waiter in woken { unsafe waiter.continuation.resume() }
  }

  private func noteSlots() {
    YieldPoint.gate.pass()
    slots.store(
      waiters.reduce(0) { $0 | Self.bit($1.slot) }, ordering: .sequentiallyConsistent)
  }
}

extension Image {
  /// Waits until every request that began before the call has ended, writes in place of the hit path
  /// included.
  ///
  /// What was changed before the call is then seen by all who are in flight: this is how a job takes
  /// COPIED away and then copies a cluster that nobody writes any more. Guests go on meanwhile. The
  /// caller has no request in flight: it would wait for itself.
  ///
  /// - Throws: `CancellationError` if the task is cancelled first.
  package func quiesce() async throws(CancellationError) {
    try await gate.quiesce(stamps, after: stamps.advance())
  }
}
