import BlockCore
import CPlatform
import Glibc
import Synchronization
import Testing

@testable import Uring

/// A loop on a thread of its own that runs tasks until told to end.
final class TestWorker: @unchecked Sendable {
  private final class Handler: CompletionHandler {
    let isDone: Atomic<Bool>
    init() { isDone = Atomic(false) }
    func complete(_ userData: UserData, result: Int32) {}
    var isFinished: Bool { isDone.load(ordering: .acquiring) }
  }

  private let handler = Handler()
  private let ready = Atomic<Bool>(false)
  private var thread: WorkerThread?
  private var made: WorkerLoop?
  var loop: WorkerLoop {
    guard let made else { fatalError("the loop is made before init returns") }
    return made
  }
  let threadID = Atomic<Int>(0)

  init(pollLimit: UInt64 = 0) throws {
    thread = try WorkerThread(name: "test") { [self] in
      do {
        made = try WorkerLoop(entries: 64, completions: 256, pollLimit: pollLimit)
      } catch { fatalError("\(error)") }
      threadID.store(Int(qublk_thread_id()), ordering: .relaxed)
      ready.store(true, ordering: .releasing)
      loop.run(handler)
      loop.leaveThread()
    }
    while !ready.load(ordering: .acquiring) { usleep(100) }
  }

  func run<T: Sendable>(_ body: @escaping @Sendable () async -> T) async -> T {
    await Task(executorPreference: loop.executor) { await body() }.value
  }

  /// Posts jobs from a thread of its own, 20 µs apart, until `isEnough`, for a minute at most.
  ///
  /// A test's own thread belongs to the pool, where it may wait for long between two of them.
  func post(until isEnough: @escaping @Sendable () -> Bool) throws {
    let executor = loop.executor
    try WorkerThread(name: "poster") {
      let end = MonotonicClock.milliseconds() + 60_000
      while !isEnough(), MonotonicClock.milliseconds() < end {
        Task(executorPreference: executor) {}
        usleep(20)
      }
    }.join()
  }

  func end() {
    handler.isDone.store(true, ordering: .releasing)
    loop.executor.wake()
    thread?.join()
  }
}

/// Counts what it is handed, and is in no hurry to end.
private final class CountingHandler: CompletionHandler {
  var count = 0
  func complete(_ userData: UserData, result: Int32) { count += 1 }
  var isFinished: Bool { true }
}

@Suite struct LoopTurnTests {
  @Test func `a turn without waiting hands out all that has completed`() throws {
    let loop = try WorkerLoop(entries: 64, completions: 64)
    defer { loop.leaveThread() }
    for slot in 0..<40 {
      var entry = SubmissionEntry.nop
      entry.userData = UserData(.fetch, slot: slot).word
      loop.ring.push(entry)
    }
    let handler = CountingHandler()
    loop.turnWithoutWaiting(handler)
    #expect(handler.count == 40)
  }
}

@Suite struct RegisteredFileTests {
  @Test func `a file has its slot until it is taken out`() throws {
    let loop = try WorkerLoop(entries: 8, completions: 8)
    defer { loop.leaveThread() }
    let (first, second) = (try TemporaryFile(), try TemporaryFile())
    try loop.registerFiles([first.descriptor], room: 4)
    try loop.setFile(second.descriptor, slot: 3)
    #expect(slot(loop.file(first.descriptor)) == 0)
    #expect(slot(loop.file(second.descriptor)) == 3)
    try loop.setFile(nil, slot: 3)
    #expect(slot(loop.file(second.descriptor)) == nil)
    #expect(throws: Errno.invalid) { try loop.setFile(second.descriptor, slot: 4) }
    #expect(slot(loop.file(second.descriptor)) == nil)
    #expect(throws: Errno(9)) { try loop.setFile(1_000_000, slot: 0) }
  }

  private func slot(_ file: RingFile) -> Int32? {
    if case .registered(let slot) = file { slot } else { nil }
  }
}

/// Each test with a loop that sleeps at once, and with one that looks for completions first.
@Suite struct WorkerLoopTests {
  @Test(arguments: [0, 500_000] as [UInt64])
  func `jobs run on the worker's thread, before and after an operation`(_ pollLimit: UInt64)
    async throws
  {
    let worker = try TestWorker(pollLimit: pollLimit)
    defer { worker.end() }
    let expected = Int32(worker.threadID.load(ordering: .relaxed))
    for _ in 0..<100 {
      let ids = await worker.run {
        let before = qublk_thread_id()
        let result = await WorkerLoop.current?.perform(.nop)
        return (before, result, qublk_thread_id())
      }
      #expect(ids.0 == expected && ids.1 == 0 && ids.2 == expected)
    }
    #expect(WorkerLoop.current == nil)
  }

  @Test(arguments: [0, 500_000] as [UInt64])
  func `a thousand operations in flight all come back`(_ pollLimit: UInt64) async throws {
    let worker = try TestWorker(pollLimit: pollLimit)
    defer { worker.end() }
    let sum = await worker.run {
      await withTaskGroup(of: Int32.self) { group in
        for _ in 0..<1000 { group.addTask { await WorkerLoop.current?.perform(.nop) ?? -1 } }
        return await group.reduce(0, +)
      }
    }
    #expect(sum == 0)
    #expect(worker.loop.operationsInFlight == 0)
  }

  @Test(arguments: [0, 500_000] as [UInt64])
  func `a resume from another thread wakes a sleeping worker`(_ pollLimit: UInt64) async throws {
    let (one, other) = (try TestWorker(pollLimit: pollLimit), try TestWorker(pollLimit: pollLimit))
    defer { one.end(); other.end() }
    let home = Int32(one.threadID.load(ordering: .relaxed))
    for round in 0..<2000 {
      let where_ = await one.run {
        let value = await withUnsafeContinuation { (waiter: UnsafeContinuation<Int, Never>) in
          Task(executorPreference: other.loop.executor) { waiter.resume(returning: round) }
        }
        return (value, qublk_thread_id())
      }
      #expect(where_.0 == round && where_.1 == home)
    }
  }

  @Test(arguments: [0, 500_000] as [UInt64])
  func `sleep lasts as long as asked, and ends early when sleeps end`(_ pollLimit: UInt64)
    async throws
  {
    let worker = try TestWorker(pollLimit: pollLimit)
    defer { worker.end() }
    let start = MonotonicClock.milliseconds()
    let full = await worker.run { await WorkerLoop.current?.sleep(milliseconds: 30) }
    #expect(full == true)
    #expect(MonotonicClock.milliseconds() - start >= 30)
    async let long = worker.run { await WorkerLoop.current?.sleep(milliseconds: 60_000) }
    usleep(20_000)
    await worker.run { WorkerLoop.current?.endSleeps() }
    #expect(await long == false)
    #expect(await worker.run { await WorkerLoop.current?.sleep(milliseconds: 60_000) } == false)
  }

  @Test func `looks for completions end when nothing comes`() async throws {
    let worker = try TestWorker(pollLimit: 50_000_000)
    defer { worker.end() }
    let counters = worker.loop.counters
    try worker.post(until: { counters.pollsFound.current > 0 })
    #expect(counters.pollsFound.current > 0)
    var time: UInt64 = 0
    // A busy machine may take its time to run the loop to its sleep.
    let isQuiet = (0..<100).contains { _ in
      let enters = counters.enters.current
      time = counters.pollNanoseconds.current
      usleep(300_000)
      return counters.pollNanoseconds.current == time && counters.enters.current == enters
    }
    #expect(isQuiet)
    // A timer on its own keeps no look alive.
    _ = await worker.run {
      for _ in 0..<20 { await WorkerLoop.current?.sleep(milliseconds: 60) }
    }
    #expect(counters.pollNanoseconds.current - time < 150_000_000)
  }

  /// The limit is longer than any wait on a busy machine: only waits within it open the window.
  @Test func `a look ends with what another thread has posted`() async throws {
    let worker = try TestWorker(pollLimit: 60_000_000_000)
    defer { worker.end() }
    let counters = worker.loop.counters
    try worker.post(until: { counters.pollsFound.current >= 10 })
    #expect(counters.pollsFound.current >= 10)
    #expect(await worker.run { 7 } == 7)
  }
}

/// Carries a result out of a thread that is joined before it is read.
private final class Box<T>: @unchecked Sendable { var value: T? }

@Suite struct RunBlockingTests {
  struct Refused: Error {}

  /// Runs on a thread of its own: a test's thread belongs to the pool.
  private func onThread<T>(_ body: @escaping @Sendable () -> T) throws -> T {
    let box = Box<T>()
    let thread = try WorkerThread(name: "blocking") { box.value = body() }
    thread.join()
    return try #require(box.value)
  }

  @Test func `returns what the function returns, on the same thread`() throws {
    let same = try onThread {
      let home = qublk_thread_id()
      return runBlocking {
        var all = qublk_thread_id() == home
        for _ in 0..<100 {
          await Task.yield()
          all = all && qublk_thread_id() == home
        }
        return all
      }
    }
    #expect(same)
  }

  @Test func `throws what the function throws`() throws {
    let thrown = try onThread {
      do throws(Refused) {
        try runBlocking { () async throws(Refused) in throw Refused() }
        return false
      } catch { return true }
    }
    #expect(thrown)
  }

  @Test func `sleeps until another thread resumes it`() throws {
    let value = try onThread {
      runBlocking {
        await withUnsafeContinuation { (waiter: UnsafeContinuation<Int, Never>) in
          let thread = try? WorkerThread(name: "resumer") {
            usleep(20_000)
            waiter.resume(returning: 7)
          }
          thread?.detach()
        }
      }
    }
    #expect(value == 7)
  }

  @Test func `child tasks run on the same thread`() throws {
    let same = try onThread {
      let home = qublk_thread_id()
      return runBlocking {
        await withTaskGroup(of: Bool.self) { group in
          for _ in 0..<10 { group.addTask { qublk_thread_id() == home } }
          return await group.reduce(true) { $0 && $1 }
        }
      }
    }
    #expect(same)
  }
}

/// A loop belongs to the thread that made it: others trap in debug builds.
struct WorkerLoopAssertionTests {
  @Test func anOperationCompletesOnce() async {
    await #expect(processExitsWith: .failure) {
      var slots = OperationSlots()
      _ = slots.hasRoom()
      _ = slots.release(0)
    }
  }

  @Test func aTransferFitsIn31Bits() async {
    await #expect(processExitsWith: .failure) {
      let data = DataBuffer(registered: 0, offset: 0, count: 1 << 31)
      _ = SubmissionEntry.read(.descriptor(0), into: data, at: 0)
    }
  }

  @Test func aLoopIsForItsOwnThread() async {
    await #expect(processExitsWith: .failure) {
      let loop = try WorkerLoop(entries: 8, completions: 16)
      loop.leaveThread()
      loop.assertOwnThread()
    }
  }
}
