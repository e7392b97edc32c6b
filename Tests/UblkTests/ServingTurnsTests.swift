import BlockCore
import CPlatform
import Glibc
import Synchronization
import Testing
import Uring

@testable import Ublk

/// The limit of requests on the slow path.
///
/// The driver is a plain file, which refuses every result: a request is over then.
@Suite(.serialized) struct ServingTurnsTests {
  @Test func `no more requests are served at once than the limit, and all in their order`() throws {
    let target = SlowTarget()
    try serve(target, limit: 2) { worker in
      for tag in 0..<8 { worker.startServing(tag) }
    }
    #expect(target.seen.withLock { $0.most } == 2)
    #expect(target.seen.withLock { $0.slots } == Array(0..<8))
  }

  @Test func `a request that holds a range does not wait for its turn`() throws {
    let target = SlowTarget()
    try serve(target, limit: 1) { worker in
      for tag in 0..<7 { worker.startServing(tag) }
      worker.startServing(7, holdsRange: true)
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
    ) { worker in
      for tag in 0..<8 { worker.startServing(tag) }
    }
    #expect(target.seen.withLock { $0.most } == 2)
    let slots = target.seen.withLock { $0.slots }
    #expect(Array(slots.prefix(4)) == [0, 1, 2, 3])
    for slot in 0..<8 { #expect(slots.count { $0 == slot } == 4) }
  }

  private func serve(
    _ target: SlowTarget, limit: Int, retryNoSpace: (@Sendable (Int) async -> Bool)? = nil,
    _ start: @escaping @Sendable (QueueWorker) -> Void
  ) throws {
    let box = FailureBox()
    let thread = try WorkerThread(name: "turns") {
      do {
        let driver = open("/tmp", O_RDWR | O_CLOEXEC | __O_TMPFILE | O_DIRECTORY, 0o600)
        defer { close(driver) }
        guard driver >= 0, ftruncate(driver, 1 << 20) == 0 else { throw Errno(errno) }
        var stage = WorkerStage.memory
        let worker = try QueueWorker(
          Self.setup(driver, target, limit, retryNoSpace), AbandonFlag(), &stage)
        defer { worker.release() }
        worker.openTags = 8
        start(worker)
        worker.serve()
      } catch { box.failure.withLock { $0 = error } }
    }
    thread.join()
    if let error = box.failure.withLock({ $0 }) { throw error }
  }

  private static func setup(
    _ driver: Int32, _ target: SlowTarget, _ limit: Int,
    _ retryNoSpace: (@Sendable (Int) async -> Bool)?
  ) -> QueueSetup {
    QueueSetup(
      queue: 0, depth: 8, maxIOBytes: 65536, usesZeroCopy: false, usesBatches: false,
      pollLimit: 0, slowPathData: .memory, servingLimit: limit, registeredBuffers: 8,
      characterDevice: driver, fileDescriptors: [driver], retryNoSpace: retryNoSpace,
      onTransferFailure: nil, zeroDescriptor: -1, affinity: nil, target: target,
      counters: QueueCounters(), onLoss: { _ in }, maintenance: nil)
  }
}

private final class FailureBox: Sendable {
  let failure = Mutex<(any Error)?>(nil)
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
    _ request: BlockRequest, worker: Int, slot: Int,
    into plan: UnsafeMutableBufferPointer<HostTransfer>
  ) -> PlanResult { .needsService }

  func finish(worker: Int, slot: Int, failed: Bool) -> FinishResult { .done }

  func serve(_ request: BlockRequest, worker: Int, slot: Int) async -> ServiceResult {
    seen.withLock {
      $0.now += 1
      $0.most = max($0.most, $0.now)
      $0.slots.append(slot)
    }
    for _ in 0..<3 { await Task.yield() }
    return seen.withLock {
      $0.now -= 1
      $0.failed[slot, default: 0] += 1
      return $0.failed[slot, default: 0] > failures ? .done : .failed(.noSpace)
    }
  }
}
