import BlockCore

/// A lock, and the state that it guards.
@safe
struct LockedStripe<State: ~Copyable> {
  let lock: UnsafeMutablePointer<FutexLock>
  /// Touch only with ``lock`` held.
  let state: UnsafeMutablePointer<State>

  @inline(__always) func withLock<R>(_ body: (inout State) -> R) -> R {
    unsafe lock.pointee.lock()
    defer { unsafe lock.pointee.unlock() }
    return unsafe body(&state.pointee)
  }
}

/// An array of locks, each in front of the state that it guards and on the same cache line.
///
/// Lock and state are variables of their own, not fields of one struct: a change of any field is an
/// exclusive access to the whole struct, and others touch the lock word at that very moment.
@safe
struct LockedStripes<State: ~Copyable>: @unchecked Sendable {  // why: the locks guard the states
  let count: Int
  private let memory: UnsafeMutableRawPointer
  private let stride: Int

  private static var stateOffset: Int {
    let alignment = MemoryLayout<State>.alignment
    return (MemoryLayout<FutexLock>.size + alignment - 1) / alignment * alignment
  }

  /// - Parameters:
  ///   - count: the number of stripes.
  ///   - rank: the rank of their locks.
  ///   - state: makes the state of the stripe with a number.
  /// - Throws: what `state` throws; nothing is left then.
  init<E: Error>(
    count: Int, rank: LockRank, _ state: (Int) throws(E) -> State
  ) throws(E) {
    self.count = count
    stride = (Self.stateOffset + MemoryLayout<State>.size + 63) & ~63
    unsafe memory = .allocate(byteCount: count * stride, alignment: 64)
    for number in 0..<count {
      do throws(E) {
        try unsafe self[number].state.initialize(to: state(number))
      } catch {
        deallocate(made: number)
        throw error
      }
      unsafe self[number].lock.initialize(to: FutexLock(rank))
    }
  }

  @inline(__always) subscript(number: Int) -> LockedStripe<State> {
    let start = unsafe memory + number &* stride
    return unsafe LockedStripe(
      lock: start.assumingMemoryBound(to: FutexLock.self),
      state: (start + Self.stateOffset).assumingMemoryBound(to: State.self))
  }

  /// Ends the lives of all stripes; the owner calls this once, in its deinit.
  func deallocate() { deallocate(made: count) }

  private func deallocate(made: Int) {
    for number in 0..<made {
      unsafe self[number].lock.deinitialize(count: 1)
      unsafe self[number].state.deinitialize(count: 1)
    }
    unsafe memory.deallocate()
  }
}
