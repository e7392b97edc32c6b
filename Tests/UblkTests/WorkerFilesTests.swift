import BlockCore
import Glibc
import Serving
import Synchronization
import Testing
import Uring

@testable import Ublk

/// Host files that come and go while a worker serves; the commands of its queue are entries that do
/// nothing, so it always has requests in flight.
@Suite(.serialized) struct WorkerFilesTests {
  @Test func `a file gets a number and loses it while requests are in flight`() async throws {
    let queue = try DriverlessThread()
    defer { queue.end() }
    queue.wait(requests: 100)

    let second = try PatternFile(0xB2)
    try await queue.files.add(second.descriptor, as: 7)
    queue.target.use(file: 7, pattern: 0xB2)
    queue.wait(requests: 1000)

    queue.target.use(file: 0, pattern: 0xA1)
    queue.wait(requests: 100)  // more than there are tags: none uses 7 any more
    await queue.files.remove(7)
    // A file with the descriptor of the one before is another file.
    let third = try PatternFile(0xC3)
    #expect(dup2(third.descriptor, second.descriptor) == second.descriptor)
    try await queue.files.add(second.descriptor, as: 255)
    queue.target.use(file: 255, pattern: 0xC3)
    queue.wait(requests: 1000)
    #expect(queue.target.wrong.load(ordering: .relaxed) == 0)
  }

  @Test func `a number that was taken away stands for nothing`() async throws {
    let queue = try DriverlessThread()
    defer { queue.end() }
    let second = try PatternFile(0xB2)
    try await queue.files.add(second.descriptor, as: 7)
    await queue.files.remove(7)
    queue.target.use(file: 7, pattern: 0xB2)
    queue.wait(requests: 100)
    #expect(queue.target.failed.load(ordering: .relaxed) > 0)
    #expect(queue.target.wrong.load(ordering: .relaxed) == 0)
  }

  @Test func `a worker that has ended takes no file, and keeps nobody waiting`() async throws {
    for _ in 0..<20 {
      let queue = try DriverlessThread()
      let second = try PatternFile(0xB2)
      let (files, descriptor) = (queue.files, second.descriptor)
      let adding = Task {
        while true {
          do throws(Errno) { try await files.add(descriptor, as: 1) } catch { return error }
        }
      }
      queue.wait(requests: 10)
      queue.end()
      #expect(await adding.value == .noDevice)
      await files.remove(1)
    }
  }
}

/// 4 KiB of one byte.
private final class PatternFile {
  let descriptor: Int32
  init(_ byte: UInt8) throws {
    descriptor = open("/dev/shm", O_RDWR | O_CLOEXEC | __O_TMPFILE | O_DIRECTORY, 0o600)
    let bytes = [UInt8](repeating: byte, count: 4096)
    guard descriptor >= 0, write(descriptor, bytes, 4096) == 4096 else { throw Errno(errno) }
  }
  deinit { close(descriptor) }
}

/// A queue's thread, without a driver; its file 0 is full of 0xA1.
private final class DriverlessThread {
  let target = PatternTarget()
  private let first: PatternFile
  private let descriptors: Int32
  private let thread: QueueThread
  private var isRunning = true
  var files: WorkerFiles { WorkerFiles(threads: [thread]) }

  init() throws {
    first = try PatternFile(0xA1)
    descriptors = try DriverlessQueue.describe(
      Array(repeating: (operation: .read, offset: 0, length: 4096), count: PatternTarget.slots))
    thread = try QueueThread(
      QueueSetup(
        queue: 0, depth: PatternTarget.slots, maxIOBytes: 65536, usesZeroCopy: false,
        usesBatches: false, commandOpcode: .nop, pollLimit: 0, slowPathData: .memory,
        requestOptions: RequestDriverOptions(), registeredBuffers: 1, characterDevice: descriptors,
        fileDescriptors: [first.descriptor], zeroDescriptor: -1, affinity: nil, target: target,
        counters: QueueCounters(), onLoss: { _ in }, maintenance: nil)
    ) {}
    try thread.waitUntilServing(milliseconds: 60_000)
  }

  /// Waits until that many more requests have ended.
  func wait(requests: Int) {
    let goal = target.ended.load(ordering: .relaxed) + requests
    let limit = MonotonicClock.milliseconds() + 60_000
    while target.ended.load(ordering: .relaxed) < goal, MonotonicClock.milliseconds() < limit {
      usleep(100)
    }
    #expect(target.ended.load(ordering: .relaxed) >= goal)
  }

  func end() {
    guard isRunning else { return }
    isRunning = false
    thread.abandon()
    thread.join()
    close(descriptors)
  }

  deinit { end() }
}

/// Reads what a file has, and knows what that must be.
private final class PatternTarget: BlockTarget, @unchecked Sendable {
  // why: what is asked is atomic; the rest belongs to the worker.

  static let slots = 8
  let size: UInt64 = 4096
  let ended = Atomic(0)
  let wrong = Atomic(0)
  let failed = Atomic(0)
  /// The file's number, and the byte that it is full of above.
  private let asked = Atomic(0xA1 << 8)
  private var running = [(pattern: UInt8, memory: UnsafeMutableRawPointer?)](
    repeating: (0, nil), count: PatternTarget.slots)

  func use(file: UInt8, pattern: UInt8) {
    asked.store(Int(pattern) << 8 | Int(file), ordering: .relaxed)
  }

  func plan(
    _ request: BlockRequest, at slot: RequestSlot,
    into plan: UnsafeMutableBufferPointer<HostTransfer>
  ) -> PlanResult {
    let asked = asked.load(ordering: .relaxed)
    running[slot.number] = (UInt8(asked >> 8), request.data.memory)
    if let memory = request.data.memory { memset(memory, 0, 4096) }
    plan[0] = HostTransfer(
      kind: .file, file: UInt8(asked & 0xFF), length: 4096, dataOffset: 0,
      hostOffset: HostOffset(0))
    return .transfers(count: 1)
  }

  func finish(at slot: RequestSlot, failed: Bool) -> FinishResult {
    let (pattern, memory) = running[slot.number]
    if failed {
      self.failed.add(1, ordering: .relaxed)
    } else if let memory,
      !UnsafeRawBufferPointer(start: memory, count: 4096).allSatisfy({ $0 == pattern })
    {
      wrong.add(1, ordering: .relaxed)
    }
    ended.add(1, ordering: .relaxed)
    return .done
  }

  func serve(_ request: BlockRequest, at slot: RequestSlot) async -> ServiceResult { .failed(.io) }
}
