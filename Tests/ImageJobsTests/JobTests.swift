import BlockCore
import DiskImages
import Glibc
import ImageJobs
import JSON
import QCOW2Engine
import QCOW2Tools
import Synchronization
import TestTools
import Testing
import Uring

/// The frame, with jobs of its own and with those that there are.
@Suite struct JobTests {
  // MARK: Parts of the frame

  @Test func `progress is a part of what there is to do`() {
    let progress = JobProgress()
    #expect(progress.snapshot.fraction == 0)
    progress.begin(8, .clusters)
    progress.advance(by: 1)
    progress.advance(by: 1)
    #expect(progress.snapshot == .init(done: 2, total: 8, unit: .clusters))
    #expect(progress.snapshot.fraction == 0.25)
    progress.reach(20)
    #expect(progress.snapshot.fraction == 1, "an image may have grown meanwhile")
  }

  @Test func `a job that is not wanted ends at its next safe point`() throws {
    let context = JobContext<NoValue>()
    try runBlocking { try await context.checkpoint(1 << 30) }
    context.cancellation.cancel()
    #expect(throws: JobError.self) { try runBlocking { try await context.checkpoint() } }
  }

  @Test(arguments: [false, true]) func `a rate is kept to`(_ onLoop: Bool) throws {
    let context = JobContext<NoValue>(rate: RateLimit(bytesPerSecond: 1 << 20))
    let begin = MonotonicClock.nanoseconds()
    // 0.3 s, the last part included.
    try Self.onThread(onLoop) { () async throws(JobError) in
      for _ in 0..<3 { try await context.checkpoint(100 << 10) }
    }
    let seconds = Double(MonotonicClock.nanoseconds() - begin) / 1e9
    #expect(seconds >= 0.29 && seconds < 5)
    context.rate.set(bytesPerSecond: 0)
    try Self.onThread(onLoop) { () async throws(JobError) in
      try await context.checkpoint(1 << 40)
    }
  }

  @Test func `a wait for the rate leaves the thread to others`() throws {
    let context = JobContext<NoValue>(rate: RateLimit(bytesPerSecond: 1 << 20))
    let steps = Atomic(0)
    try JobLoop.run { loop async throws(JobError) in
      loop.spawn {
        while let loop = WorkerLoop.current, await loop.sleep(milliseconds: 5) {
          steps.add(1, ordering: .relaxed)
        }
      }
      try await context.checkpoint(300 << 10)
    }
    #expect(steps.load(ordering: .relaxed) > 5)
  }

  @Test func `a cancellation ends a wait for the rate`() throws {
    let context = JobContext<NoValue>(rate: RateLimit(bytesPerSecond: 1))
    let thread = try WorkerThread(name: "cancel") {
      usleep(100_000)
      context.cancellation.cancel()
    }
    let begin = MonotonicClock.nanoseconds()
    #expect(throws: JobError.self) {
      try Self.onThread(true) { () async throws(JobError) in try await context.checkpoint(1000) }
    }
    #expect(MonotonicClock.nanoseconds() - begin < 5_000_000_000)
    thread.join()
  }

  private static func onThread(
    _ onLoop: Bool, _ body: @escaping @Sendable () async throws(JobError) -> Void
  ) throws(JobError) {
    if onLoop {
      try JobLoop.run { _ async throws(JobError) in try await body() }
    } else {
      try runBlocking { () async throws(JobError) in try await body() }
    }
  }

  // MARK: Parameters

  @Test func `parameters survive the way through a request`() throws {
    var map = MapJob(start: 5, length: .max)
    try Self.survive(map) { $0.start == 5 && $0.length == .max }
    map = MapJob()
    try Self.survive(map) { $0.start == 0 && $0.length == .max }
    try Self.survive(ResizeJob(size: 1 << 63)) {
      if case .exactly(1 << 63) = $0.amount { true } else { false }
    }
    try Self.survive(CommitJob(empties: false)) { !$0.empties }
    let rebase = RebaseJob(base: "b", format: .raw, isUnsafe: true, compresses: true)
    try Self.survive(rebase) {
      $0.base == "b" && $0.format == .raw && $0.isUnsafe && $0.compresses
    }
    try Self.survive(RebaseJob(base: nil, format: nil, isUnsafe: false, compresses: false)) {
      $0.base == nil && $0.format == nil && !$0.isUnsafe && !$0.compresses
    }
    try Self.survive(CheckJob(repair: .all)) { $0.repair == .all }
    try Self.survive(CheckJob()) { $0.repair == nil }
    try Self.survive(InfoJob(filename: "ü\n")) { $0.filename == "ü\n" }
    try Self.survive(InfoJob()) { $0.filename == nil && !$0.isRaw && $0.limits == nil }
    let limits = HostLimits(requestAlignment: 512, memoryAlignment: 4, isProbed: true)
    try Self.survive(InfoJob(isRaw: true, limits: limits)) { $0.isRaw && $0.limits == limits }
    try Self.survive(MeasureJob(clusterBits: 12, countsData: false)) {
      $0.clusterBits == 12 && !$0.countsData
    }
  }

  private static func survive<Job: ImageJob>(_ job: Job, _ isSame: (Job) -> Bool) throws {
    var arguments = try JobArguments(JSONParser.parse(job.arguments.line))
    #expect(isSame(try Job(&arguments)))
    try arguments.finish()
  }

  @Test(arguments: [
    ("{\"size\": -1}", "argument \"size\" is -1, expected a number from 0 to 18446744073709551615"),
    ("{}", "give one of \"size\", \"grow-by\" and \"shrink-by\""),
    ("{\"size\": null}", "give one of \"size\", \"grow-by\" and \"shrink-by\""),
    ("{\"size\": 1, \"b\": 2}", "unknown argument \"b\""), ("5", "arguments are not an object"),
  ])
  func `wrong parameters are named`(_ text: String, _ message: String) {
    do throws(JobError) {
      var arguments = try JobArguments(JSONParser.parse(text))
      _ = try ResizeJob(&arguments)
      try arguments.finish()
      Issue.record("taken")
    } catch { #expect(error.message == message) }
  }

  @Test func `an outcome survives the way through a reply`() {
    var result = CheckResult()
    (result.leaks, result.checkErrors, result.imageEndOffset) = (3, 1, .max)
    #expect(CheckResult(json: result.json) == result)
    #expect(CheckResult(json: .object([])) == nil)
    let range = MapRange(start: 1, length: .max, isAllocated: true)
    #expect(MapRange(json: range.json) == range)
    #expect(MapRange(json: .null) == nil && NoValue(json: .null) == nil)
  }
}
