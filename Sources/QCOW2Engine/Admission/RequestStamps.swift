import BlockCore
import Synchronization

/// Which requests are in flight, and since when: what keeps a freed host cluster from being reused
/// while a transfer to it may still run (docs/design.md, section 4, rule 4).
///
/// Each request owns one word: 0 while idle, else the clock's value from before it looked at any
/// mapping. A cluster whose pointer was removed before the clock read F can be reused when every
/// word is 0 or above F: a request that saw the old pointer carries a stamp of at most F.
/// Entering costs the hit path one load and one store; nothing is counted per cluster.
@safe
final class RequestStamps: @unchecked Sendable {  // why: atomics in stable storage
  private let clock = Atomic<UInt64>(1)
  private let stamps: UnsafeMutablePointer<Atomic<UInt64>>
  private let slotsPerWorker: Int
  private let count: Int

  init(workers: Int, slotsPerWorker: Int) {
    self.slotsPerWorker = slotsPerWorker
    count = workers * slotsPerWorker
    unsafe stamps = .allocate(capacity: count)
    for index in 0..<count { unsafe (stamps + index).initialize(to: Atomic(0)) }
  }

  deinit {
    unsafe stamps.deinitialize(count: count)
    unsafe stamps.deallocate()
  }

  /// The number of a worker's slot among all slots.
  @inline(__always) func index(at slot: RequestSlot) -> Int {
    slot.worker &* slotsPerWorker &+ slot.number
  }

  /// Marks the request in flight; call before looking at any mapping.
  ///
  /// Sequentially consistent: the store must not linger in a store buffer while the mapping is
  /// read, or ``oldest()`` on another thread would miss a request that has seen the old pointer.
  @inline(__always) func enter(at slot: RequestSlot) {
    YieldPoint.stamp.pass()
    let now = clock.load(ordering: .relaxed)
    YieldPoint.stamp.pass()
    unsafe stamps[index(at: slot)].store(now, ordering: .sequentiallyConsistent)
  }

  /// Marks the request done; call after its last transfer.
  ///
  /// Sequentially consistent: the look at the ``RequestGate`` that follows must not come first.
  @inline(__always) func exit(at slot: RequestSlot) { exit(index(at: slot)) }

  /// The same by the slot's number among all.
  @inline(__always) func exit(_ index: Int) {
    YieldPoint.stamp.pass()
    unsafe stamps[index].store(0, ordering: .sequentiallyConsistent)
  }

  /// Whether none of a worker's slots is in flight.
  func isIdle(worker: Int) -> Bool {
    (0..<slotsPerWorker).allSatisfy { number in
      let index = index(at: RequestSlot(worker: worker, number: number))
      return unsafe stamps[index].load(ordering: .sequentiallyConsistent) == 0
    }
  }

  /// Whether a slot has a request in flight with a stamp of at most `stamp`; by the slot's number among
  /// all.
  func isInFlight(_ index: Int, upTo stamp: UInt64) -> Bool {
    YieldPoint.stamp.pass()
    let found = unsafe stamps[index].load(ordering: .sequentiallyConsistent)
    return found != 0 && found <= stamp
  }

  /// The first slot, from the one with the number `start` on, with such a request; nil if there is none.
  func firstInFlight(upTo stamp: UInt64, from start: Int) -> Int? {
    (start..<count).first { isInFlight($0, upTo: stamp) }
  }

  /// Advances the clock; call after the pointers were removed.
  ///
  /// Sequentially consistent: the look at the stamps that follows must not come before the removal.
  func advance() -> UInt64 {
    YieldPoint.stamp.pass()
    return clock.wrappingAdd(1, ordering: .sequentiallyConsistent).oldValue
  }

  /// The oldest stamp in flight; UInt64.max when all is idle.
  func oldest() -> UInt64 {
    var oldest = UInt64.max
    for index in 0..<count {
      YieldPoint.stamp.pass()
      let stamp = unsafe stamps[index].load(ordering: .sequentiallyConsistent)
      if stamp != 0 { oldest = min(oldest, stamp) }
    }
    return oldest
  }
}
