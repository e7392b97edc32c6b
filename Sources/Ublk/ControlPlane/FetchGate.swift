import BlockCore
import CPlatform
import Synchronization

/// Holds the workers of a recovery back until all of them can fetch.
///
/// Drivers before Linux 6.16 cannot be told of a second new server if the first one died between its first
/// mapping of descriptors and the fetch of its last queue. So all that can fail or takes time comes before:
/// threads, rings, memory. What is left takes microseconds.
@safe
final class FetchGate: @unchecked Sendable {  // why: `lock` guards both words
  private enum State {
    static let shut: UInt32 = 0
    static let open: UInt32 = 1
    static let cancelled: UInt32 = 2
  }

  private let lock = FutexLock(.leaf)
  private let state: UnsafeMutablePointer<UInt32>
  private let arrived: UnsafeMutablePointer<UInt32>

  init() {
    unsafe state = .allocate(capacity: 1)
    unsafe state.initialize(to: State.shut)
    unsafe arrived = .allocate(capacity: 1)
    unsafe arrived.initialize(to: 0)
  }

  deinit {
    unsafe state.deallocate()
    unsafe arrived.deallocate()
  }

  /// The worker's side: waits for the gate.
  ///
  /// - Returns: False if the recovery was given up.
  func pass() -> Bool {
    lock.withLock { unsafe arrived.pointee += 1 }
    unsafe qublk_futex_wake(arrived, Int32.max)
    while true {
      let seen = lock.withLock { unsafe state.pointee }
      if seen != State.shut { return seen == State.open }
      unsafe qublk_futex_wait(state, seen)
    }
  }

  /// Whether so many workers wait, within some milliseconds; `hasFailed` is asked meanwhile.
  func wait(for workers: Int, milliseconds: Int, hasFailed: () -> Bool) -> Bool {
    let end = MonotonicClock.milliseconds() + UInt64(milliseconds)
    while true {
      let seen = lock.withLock { unsafe arrived.pointee }
      if seen >= workers { return true }
      if hasFailed() || MonotonicClock.milliseconds() >= end { return false }
      _ = unsafe qublk_futex_wait_for(arrived, seen, 20)
    }
  }

  func open() { set(State.open) }

  /// Has the workers leave without a fetch; nothing once it is open.
  func cancel() { set(State.cancelled) }

  private func set(_ value: UInt32) {
    lock.withLock { if unsafe state.pointee == State.shut { unsafe state.pointee = value } }
    unsafe qublk_futex_wake(state, Int32.max)
  }
}
