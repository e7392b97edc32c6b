import BlockCore
import Serving
import Synchronization
import Testing

/// The limit of requests on the slow path.
@Suite(.serialized) struct ServingTurnsTests {
  @Test func `no more requests are served at once than the limit, and all in their order`() throws {
    let target = SlowTarget()
    try serve(target, limit: 2) { source in
      for slot in 0..<8 { source.requests.start(BlockRequest(.flush), slot: slot, for: source) }
    }
    #expect(target.seen.withLock { $0.most } == 2)
    #expect(target.seen.withLock { $0.slots } == Array(0..<8))
  }

  @Test func `a request that holds a range does not wait for its turn`() throws {
    let target = SlowTarget()
    let write = BlockRequest(.write, length: 512)
    try serve(target, limit: 1) { source in
      for slot in 0..<7 { source.requests.start(BlockRequest(.flush), slot: slot, for: source) }
      source.requests.start(write, slot: 7, for: source)
    }
    #expect(target.seen.withLock { $0.most } == 2)
    #expect(target.seen.withLock { $0.slots } == [0, 7, 1, 2, 3, 4, 5, 6])
  }

  @Test func `a request that waits for space lets others have their turn, and gets another one`()
    throws
  {
    let target = SlowTarget(failures: 3)
    try serve(
      target, limit: 2,
      retryNoSpace: { attempt in
        await Task.yield()
        return attempt < 3
      }
    ) { source in
      for slot in 0..<8 { source.requests.start(BlockRequest(.flush), slot: slot, for: source) }
    }
    #expect(target.seen.withLock { $0.most } == 2)
    let slots = target.seen.withLock { $0.slots }
    #expect(Array(slots.prefix(4)) == [0, 1, 2, 3])
    for slot in 0..<8 { #expect(slots.count { $0 == slot } == 4) }
  }

  private func serve(
    _ target: SlowTarget, limit: Int, retryNoSpace: (@Sendable (Int) async -> Bool)? = nil,
    _ start: @escaping @Sendable (ScriptedSource) -> Void
  ) throws {
    var options = RequestDriverOptions()
    options.servingLimit = limit
    options.retryNoSpace = retryNoSpace
    try ScriptedSource.run(target, options: options, start) { source in
      #expect(source.ends.count == 8 && source.ends.allSatisfy { $0.failure == 0 })
    }
  }
}

/// Takes some turns of the loop for each request, and notes how many are at it.
private final class SlowTarget: BlockTarget {
  struct Seen {
    var now = 0
    var most = 0
    var slots: [Int] = []
    var failed: [Int: Int] = [:]
  }

  let size: UInt64 = 1 << 20
  let seen = Mutex(Seen())
  /// How often each request fails for want of space.
  private let failures: Int

  init(failures: Int = 0) { self.failures = failures }

  func plan(
    _ request: BlockRequest, at slot: RequestSlot,
    into plan: UnsafeMutableBufferPointer<HostTransfer>
  ) -> PlanResult { .transfers(count: 0) }

  func finish(at slot: RequestSlot, failed: Bool) -> FinishResult { .needsService }

  func serve(_ request: BlockRequest, at slot: RequestSlot) async -> ServiceResult {
    seen.withLock {
      $0.now += 1
      $0.most = max($0.most, $0.now)
      $0.slots.append(slot.number)
    }
    for _ in 0..<3 { await Task.yield() }
    return seen.withLock {
      $0.now -= 1
      $0.failed[slot.number, default: 0] += 1
      return $0.failed[slot.number, default: 0] > failures ? .done : .failed(.noSpace)
    }
  }
}
