import BlockCore
import QCOW2Engine
import QCOW2Tools
import TestSupport
import TestTools
import Testing

/// Power cuts, after which the image is opened, used, and gets its leaks back at the same time.
@Suite struct LeakPowerCutTests {
  static let scenarios: [PowerCutTests.Scenario] = {
    var shapes = ImageShape.Contents.allCases.flatMap { contents in
      [9, 12].map { ImageShape(clusterBits: $0, contents: contents) }
    }
    shapes += [ImageShape(clusterBits: 9, contents: .snapshot, isLazy: true)]
    shapes += ImageShape.compressing.prefix(3) + ImageShape.extended.prefix(3)
    shapes += ImageShape.backed.prefix(2) + ImageShape.externalData.prefix(2)
    return shapes.filter { $0.clusterBits < 16 }.enumerated().map { number, shape in
      var scenario = PowerCutTests.Scenario(shape: shape, operations: 40)
      scenario.cacheSlices = number % 3 == 1 ? 2 : nil
      scenario.writesBackAlways = number % 2 == 0
      return scenario
    }
  }()

  @Test(
    "After each power cut all leaks go back under new load, and no byte is lost",
    arguments: share(of: scenarios))
  func everyCrashStateGetsItsLeaksBack(scenario: PowerCutTests.Scenario) throws {
    let seed = testSeed("power cut and leaks")
    let bench = try PowerCutTests().record(scenario, seed: seed)
    let crashes = CrashEnumerator(
      originals: bench.originals, events: bench.recording.events, seed: seed)
    let every = testSetting("QUBLK_LEAK_CUTS", default: 9)
    var (failure, checked, returned, leaked): (String?, Int, Int, Int) = (nil, 0, 0, 0)
    crashes.visit(perCut: 2) { state in
      if crashes.count % every != 1 { return true }
      do {
        var run = LeakCutRun(bench, state, seed: seed &+ UInt64(crashes.count))
        failure = try run.problem()
        checked += 1
        leaked += run.leaked
        returned += run.returned
      } catch { failure = "\(error)" }
      failure = failure.map { "\(state.description): \($0)" }
      return failure == nil
    }
    if let failure { Issue.record("seed \(seed): \(failure)") }
    #expect(checked > 0)
    print(
      "power cut and leaks: \(checked) states, \(leaked) leaks, \(returned) returned,",
      scenario.testDescription)
  }
}

/// One crash state.
private struct LeakCutRun {
  private let bench: Bench
  private let contents: [TestSupport.ImageBytes]
  private let seed: UInt64
  private(set) var leaked = 0
  private(set) var returned = 0
  private static let pattern: UInt8 = 0x77

  init(_ bench: Bench, _ state: CrashEnumerator.State, seed: UInt64) {
    self.bench = bench
    contents = state.files.map { $0.copy() }
    self.seed = seed
  }

  /// - Returns: What is wrong with the image after it has been used and closed.
  mutating func problem() throws -> String? {
    if let problem = rebuildIfDirty(contents[0]) { return problem }
    let before = bench.verifier(contents)
    before.allowsStaleBitmaps = true
    leaked = before.check().leaks
    let sectors = bench.model.touched
    let found = sectors.map { Self.bytes(before.sector($0)) }
    let written = Guarded<Set<Int>>([])
    let dropped = Guarded<Set<Int>>([])
    let counts = Guarded((returned: 0, isComplete: false, problem: String?.none))
    let (bench, contents, seed) = (bench, contents, seed)
    try SimulatedHost(seed: seed).run {
      let files = bench.immediateFiles(contents, yields: true)
      guard let file = files[0] as? MemoryFile else { return }
      var options = bench.options
      options.dirtyAgeMilliseconds = 0
      let image = try await bench.open(files, options: options)
      try await withThrowingTaskGroup(of: Void.self) { group in
        for slot in 0..<2 {
          group.addTask {
            let problem = await Self.use(
              image, files, sectors, slot, seed: seed &+ UInt64(slot), written, dropped)
            if let problem { counts.withLock { $0.problem = problem } }
          }
        }
        var looks = LeakLooks(image, file)
        try await looks.run(atMost: 2)
        try await group.waitForAll()
        for _ in 0..<10 where !looks.isComplete { try await looks.run(atMost: 1) }
        counts.withLock { [looks] in
          $0.returned = looks.returned + looks.lowered
          $0.isComplete = looks.isComplete
          if let obstacle = looks.obstacle { $0.problem = obstacle }
          if let low = looks.tooLow.first { $0.problem = "refcount of \(low.cluster) is too low" }
        }
      }
      try await image.close()
    }
    let (back, isComplete, problem) = counts.withLock { $0 }
    returned = back
    if let problem { return problem }
    if !isComplete { return "the looks did not come to an end" }
    let after = bench.verifier(contents)
    after.allowsStaleBitmaps = true
    let report = after.check()
    if let error = report.errors.first { return error }
    if report.leaks > 0 {
      let left = try LeakScan(RebuiltBytes(contents[0]), behind: 0, standing: { _ in .constant })
      return "\(report.leaks) leaks, of \(leaked) before: \(left.leaked.prefix(4))"
    }
    for (sector, old) in zip(sectors, found) where !dropped.withLock({ $0.contains(sector) }) {
      let now = Self.bytes(after.sector(sector))
      let wanted =
        written.withLock { $0.contains(sector) }
        ? [UInt8](repeating: Self.pattern, count: 512) : old
      if now != wanted { return "sector \(sector) has other bytes" }
    }
    return bench.snapshotProblems(after).first
  }

  private static func bytes(_ sector: UnsafeRawPointer?) -> [UInt8] {
    guard let sector else { return [UInt8](repeating: 0, count: 512) }
    return Array(UnsafeRawBufferPointer(start: sector, count: 512))
  }

  /// Writes and discards; notes what can have changed before it does.
  ///
  /// - Returns: What went wrong.
  private static func use(
    _ image: Image, _ files: [any HostFile], _ sectors: [Int], _ slot: Int, seed: UInt64,
    _ written: Guarded<Set<Int>>, _ dropped: Guarded<Set<Int>>
  ) async -> String? {
    var random = SeededGenerator(seed: seed)
    let driver = MiniWorker(target: image, files: files, worker: slot)
    let buffer = IOBuffer(count: 8192)
    buffer.base.initializeMemory(as: UInt8.self, repeating: pattern, count: 8192)
    defer { withExtendedLifetime(buffer) {} }
    let end = Int(image.size) / 512
    for step in 0..<25 where !sectors.isEmpty {
      // Each of the two has sectors of its own, a cluster's worth or more apart where it discards.
      let first = sectors[random.below(sectors.count)]
      let count = min(1 + random.below(16), end - first)
      if count <= 0 { continue }
      let range = first..<(first + count)
      let isDiscard = step % 4 == 3
      (isDiscard ? dropped : written).withLock { $0.formUnion(range) }
      let request = BlockRequest(
        isDiscard ? .discard : .write, offset: GuestOffset(UInt64(first) * 512),
        length: UInt64(count) * 512, data: isDiscard ? .none : buffer.data)
      if let errno = await driver.perform(request, slot: 0) {
        return "\(request.operation) failed with \(errno.code)"
      }
      if step % 5 == 0 { await image.maintain() }
    }
    return nil
  }
}
