/// The slot numbers of requests in flight; a request that finds no slot free waits for one.
///
/// Used by one thread.
@safe
struct IOSlots: ~Copyable {
  static let count = 64

  private var free = Array(0..<count)
  private var waiters: [UnsafeContinuation<Void, Never>] = unsafe []

  /// A free slot; nil if there is none, and the caller must wait.
  mutating func take() -> Int? { free.popLast() }

  mutating func wait(_ continuation: UnsafeContinuation<Void, Never>) {
    unsafe waiters.append(continuation)
  }

  mutating func give(_ slot: Int) {
    free.append(slot)
    if unsafe !waiters.isEmpty { unsafe waiters.removeFirst().resume() }
  }
}
