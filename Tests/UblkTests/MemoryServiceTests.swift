import BlockCore
import Glibc
import Serving
import Synchronization
import Testing
import Uring

@testable import Ublk

/// Requests under zero copy whose data must be in plain memory: it is copied through the character device.
///
/// The driver is a plain file, which has places for the requests' data, and refuses every result: a
/// request is over then.
@Suite(.serialized) struct MemoryServiceTests {
  private static let bytes = 4096

  @Test(arguments: [SlowPathData.registered, .memory])
  func `a read is served in memory and copied to the request's pages`(_ data: SlowPathData) throws {
    let target = MemoryTarget()
    try serve(target, .read, data) { worker in
      var pages = [UInt8](repeating: 0, count: Self.bytes)
      let position = worker.userCopy.position(tag: 5, offset: 0)
      #expect(pread(worker.setup.characterDevice, &pages, pages.count, off_t(position)) == 4096)
      #expect(pages.allSatisfy { $0 == 0xA5 })
    }
    #expect(
      target.seen.withLock { $0 } == (data == .memory ? ["memory"] : ["registered", "memory"]))
  }

  @Test(arguments: [SlowPathData.registered, .memory])
  func `a write is copied from the request's pages before it is served`(_ data: SlowPathData) throws
  {
    let target = MemoryTarget()
    try serve(target, .write, data) { worker in
      #expect(worker.setup.counters.userCopies.current == 1)
    }
    #expect(target.written.withLock { $0 } == [UInt8](repeating: 0x3C, count: Self.bytes))
  }

  /// Serves one request in tag 5 whose pages are full of 0x3C.
  private func serve(
    _ target: MemoryTarget, _ operation: BlockOperation, _ data: SlowPathData,
    then check: @escaping @Sendable (QueueWorker) -> Void
  ) throws {
    let box = Box()
    let thread = try WorkerThread(name: "memory") {
      do {
        let driver = open("/tmp", O_RDWR | O_CLOEXEC | __O_TMPFILE | O_DIRECTORY, 0o600)
        defer { close(driver) }
        guard driver >= 0, ftruncate(driver, 1 << 20) == 0 else { throw Errno(errno) }
        var stage = WorkerStage.memory
        let worker = try QueueWorker(Self.setup(driver, target, data), AbandonFlag(), &stage)
        defer { worker.release() }
        let pages = [UInt8](repeating: 0x3C, count: Self.bytes)
        let position = off_t(worker.userCopy.position(tag: 5, offset: 0))
        guard pwrite(driver, pages, pages.count, position) == 4096 else { throw Errno(errno) }
        worker.openTags = 1
        let registered = DataBuffer(registered: 5, offset: 0, count: Self.bytes)
        worker.requests.start(
          BlockRequest(operation, length: UInt64(Self.bytes), data: registered), slot: 5,
          for: worker)
        worker.serve()
        #expect(worker.tags[5].result == Int32(Self.bytes))
        check(worker)
      } catch { box.error.withLock { $0 = error } }
    }
    thread.join()
    if let error = box.error.withLock({ $0 }) { throw error }
  }

  private final class Box: Sendable {
    let error = Mutex<(any Error)?>(nil)
  }

  private static func setup(
    _ driver: Int32, _ target: MemoryTarget, _ data: SlowPathData
  ) -> QueueSetup {
    QueueSetup(
      queue: 0, depth: 8, maxIOBytes: 65536, usesZeroCopy: true, usesBatches: false,
      pollLimit: 0, slowPathData: data, requestOptions: RequestDriverOptions(),
      registeredBuffers: 8, characterDevice: driver, fileDescriptors: [driver],
      zeroDescriptor: driver, affinity: nil, target: target, counters: QueueCounters(),
      onLoss: { _ in }, maintenance: nil)
  }
}

/// Serves in memory only: reads are 0xA5, what is written is kept.
private final class MemoryTarget: BlockTarget {
  let size: UInt64 = 1 << 20
  let seen = Mutex<[String]>([])
  let written = Mutex<[UInt8]>([])

  func plan(
    _ request: BlockRequest, at slot: RequestSlot,
    into plan: UnsafeMutableBufferPointer<HostTransfer>
  ) -> PlanResult { .needsService }

  func finish(at slot: RequestSlot, failed: Bool) -> FinishResult { .done }

  func serve(_ request: BlockRequest, at slot: RequestSlot) async -> ServiceResult {
    seen.withLock { $0.append(request.data.isMemory ? "memory" : "registered") }
    guard let memory = request.data.memory else { return .needsMemory }
    let bytes = UnsafeMutableRawBufferPointer(start: memory, count: request.data.count)
    if request.operation == .read {
      for index in bytes.indices { bytes[index] = 0xA5 }
    } else {
      written.withLock { $0 = Array(bytes) }
    }
    return .done
  }
}
