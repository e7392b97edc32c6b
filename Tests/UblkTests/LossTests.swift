import BlockCore
import CPlatform
import CUblk
import Glibc
import Serving
import Synchronization
import Testing
import Uring

@testable import Ublk

/// A worker whose driver is a plain file: every command that it sends is refused with EOPNOTSUPP, and the
/// test plays the driver's part by handing it completions.
@Suite(.serialized) struct LossTests {
  @Test func `commands refused before the queue serves are no loss, but a failure to fetch`() throws
  {
    for batches in [false, true] {
      try Fixture(batches: batches).run { worker, losses in
        worker.fetchAll()
        #expect(worker.fetchFailure != nil)
        #expect(losses.seen.isEmpty)
      }
    }
  }

  @Test
  func
    `a result that the driver refuses for good loses the queue, and the worker leaves when told`()
    throws
  {
    try Fixture(batches: false).run { worker, losses in
      losses.onLoss = { worker.abandoned.set() }
      worker.openTags = 2
      worker.spawn { worker.hand(1) }
      worker.serve()
      #expect(losses.seen == [.notSupported])
      #expect(worker.fetchFailure == .notSupported)
      #expect(worker.setup.counters.driverErrors.current == 1)
      #expect(worker.openTags == 1)
    }
  }

  @Test func `a shortage is tried again until it has lasted too long`() throws {
    try Fixture(batches: false).run { worker, losses in
      worker.openTags = 1
      losses.onLoss = { worker.abandoned.set() }
      worker.spawn {
        worker.complete(UserData(.fetch, slot: 0), result: -Errno.noMemory.code)
        #expect(losses.seen.isEmpty && worker.openTags == 1)
        #expect(worker.refusedSince != 0)
      }
      // What is tried again is refused for good, this driver being a file.
      worker.serve()
      #expect(losses.seen == [.notSupported])
      #expect(worker.setup.counters.driverErrors.current == 2)
    }
    try Fixture(batches: false).run { worker, losses in
      worker.openTags = 1
      losses.onLoss = { worker.abandoned.set() }
      worker.spawn {
        worker.refusedSince = 1
        worker.complete(UserData(.fetch, slot: 0), result: -Errno.noMemory.code)
      }
      worker.serve()
      #expect(losses.seen == [.noMemory])
    }
  }

  @Test func `the end of the device is none`() throws {
    for batches in [false, true] {
      try Fixture(batches: batches).run { worker, losses in
        worker.openTags = 1
        worker.spawn {
          if batches {
            worker.completeBatch(
              UserData(.batchFetch), result: -Errno.noDevice.code, flags: CompletionFlags(raw: 0))
          } else {
            worker.complete(UserData(.fetch, slot: 0), result: -Errno.noDevice.code)
          }
        }
        worker.serve()
        #expect(losses.seen.isEmpty && worker.fetchFailure == nil)
        #expect(worker.setup.counters.driverErrors.current == 0)
      }
    }
  }

  @Test func `a batch is sent again from where the driver stopped`() throws {
    try Fixture(batches: true).run { worker, losses in
      for tag in 0..<4 {
        worker.openTags += 1
        worker.commit(tag, result: Int32(tag) * 512)
      }
      let closed = worker.batch.close()
      let (first, _, count) = try #require(closed)
      #expect(count == 4 && worker.openTags == 0)
      worker.openTags += 1  // the command's
      // Two of four.
      worker.answer(first, Int32(2 * worker.batch.elementBytes))
      let second = worker.batch.current
      #expect(worker.batch.count(second) == 2)
      #expect(worker.batch.element(second, 0) == (2, 1024))
      #expect(worker.batch.element(second, 1) == (3, 1536))
      _ = worker.batch.close()
      worker.openTags += 1
      // The driver has no request in the first one's tag.
      worker.answer(second, -Errno.busy.code)
      let third = worker.batch.current
      #expect(worker.batch.count(third) == 1 && worker.batch.element(third, 0) == (3, 1536))
      _ = worker.batch.close()
      worker.openTags += 1
      worker.answer(third, Int32(worker.batch.elementBytes))
      #expect(worker.batch.current < 0 && worker.openTags == 0)
      #expect(worker.setup.counters.driverErrors.current == 2)
      #expect(losses.seen.isEmpty)
    }
  }

  @Test func `a batch refused for good loses the queue, one refused for a while does not`() throws {
    try Fixture(batches: true).run { worker, losses in
      losses.onLoss = { worker.abandoned.set() }
      worker.openTags = 1
      worker.spawn {
        worker.commit(0, result: 512)
        guard let (index, _, _) = worker.batch.close() else { return }
        worker.openTags += 1
        worker.answer(index, -Errno.noMemory.code)
        #expect(losses.seen.isEmpty && worker.openTags == 1 && worker.batch.current < 0)
        #expect(worker.batch.count(index) == 1)
      }
      worker.serve()
      #expect(losses.seen == [.notSupported] || losses.seen == [.invalid])
    }
  }

  @Test func `a fetch that ends is armed again, one that fails for too long loses the queue`()
    throws
  {
    try Fixture(batches: true).run { worker, losses in
      losses.onLoss = { worker.abandoned.set() }
      worker.openTags = 1
      worker.spawn {
        let ended = CompletionFlags(raw: 0)
        let before = worker.loop.ring.unsubmitted
        worker.completeBatch(UserData(.batchFetch), result: 0, flags: ended)
        #expect(worker.openTags == 1 && worker.loop.ring.unsubmitted == before + 1)
        worker.completeBatch(UserData(.batchFetch), result: -Errno.noBuffers.code, flags: ended)
        #expect(worker.openTags == 1 && worker.loop.ring.unsubmitted == before + 2)
        worker.refusedSince = 1  // long ago
        worker.completeBatch(UserData(.batchFetch), result: -14, flags: ended)
        #expect(losses.seen == [Errno(14)])
      }
      worker.serve()
      #expect(losses.seen == [Errno(14)])
    }
  }

  @Test func `tags that the driver must not hand out are left alone`() throws {
    try Fixture(batches: true).run { worker, losses in
      guard let buffer = worker.fetchBuffers?.buffer(0) else { return }
      let tags = UnsafeMutableRawPointer(mutating: buffer.baseAddress!)
        .assumingMemoryBound(to: UInt16.self)
      // 0 is idle, 9 does not exist, 1 and 2 are the driver's.
      (tags[0], tags[1], tags[2], tags[3]) = (0, 9, 1, 2)
      worker.tags[1].phase = .fetching
      worker.tags[2].phase = .fetching
      worker.openTags = 1
      // Fewer than the buffer has room for, and a byte that is no tag.
      worker.completeBatch(
        UserData(.batchFetch), result: 7, flags: CompletionFlags(raw: 1 | 1 << 1))
      #expect(worker.tags[0].phase == .idle)
      #expect(worker.tags[1].phase != .fetching || worker.batch.current >= 0)
      // Of nothing but zeros: a read of 0 bytes.
      #expect(worker.setup.counters.refusals.current == 1)
      #expect(worker.tags[2].phase == .fetching)
      #expect(losses.seen.isEmpty)
    }
  }
}

extension QueueWorker {
  /// What the driver does when a request has come, of zeros: a READ of no bytes, refused at once.
  fileprivate func hand(_ tag: Int) { complete(UserData(.fetch, slot: tag), result: 0) }

  /// The driver's answer to the batch `index`.
  fileprivate func answer(_ index: Int, _ result: Int32) {
    completeBatch(
      UserData(.batchCommit, slot: index), result: result, flags: CompletionFlags(raw: 0))
  }
}

/// What the worker has told of losses; on its thread only.
private final class Losses: @unchecked Sendable {
  // why: confined to the worker's thread.
  var seen: [Errno] = []
  var onLoss: () -> Void = {}

  func add(_ error: Errno) {
    seen.append(error)
    onLoss()
  }
}

private struct Fixture {
  let batches: Bool

  /// Runs `body` on a worker's thread, and hands on what it throws.
  func run(_ body: @escaping @Sendable (QueueWorker, Losses) throws -> Void) throws {
    let outcome = Outcome()
    let batches = batches
    let thread = try WorkerThread(name: "loss") {
      do {
        let losses = Losses()
        let driver = open("/tmp", O_RDWR | O_CLOEXEC | __O_TMPFILE | O_DIRECTORY, 0o600)
        defer { close(driver) }
        guard driver >= 0, ftruncate(driver, 1 << 20) == 0 else { throw Errno(errno) }
        var stage = WorkerStage.memory
        let worker = try QueueWorker(
          Self.setup(driver, batches, losses), AbandonFlag(), &stage)
        defer { worker.release() }
        try body(worker, losses)
      } catch { outcome.failure.withLock { $0 = error } }
    }
    thread.join()
    if let error = outcome.failure.withLock({ $0 }) { throw error }
  }

  private static func setup(_ driver: Int32, _ batches: Bool, _ losses: Losses) -> QueueSetup {
    QueueSetup(
      queue: 0, depth: 8, maxIOBytes: 65536, usesZeroCopy: false, usesBatches: batches,
      pollLimit: 0, slowPathData: .memory, requestOptions: RequestDriverOptions(),
      registeredBuffers: 8, characterDevice: driver, fileDescriptors: [driver], zeroDescriptor: -1,
      affinity: nil,
      target: NoTarget(), counters: QueueCounters(), onLoss: { losses.add($0) },
      maintenance: nil)
  }
}

private final class Outcome: Sendable {
  let failure = Mutex<(any Error)?>(nil)
}

/// Asked for nothing, as every request is refused.
private final class NoTarget: BlockTarget {
  let size: UInt64 = 1 << 20
  func plan(
    _ request: BlockRequest, at slot: RequestSlot,
    into plan: UnsafeMutableBufferPointer<HostTransfer>
  ) -> PlanResult { .needsService }
  func finish(at slot: RequestSlot, failed: Bool) -> FinishResult { .done }
  func serve(_ request: BlockRequest, at slot: RequestSlot) async -> ServiceResult { .done }
}
