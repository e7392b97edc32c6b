import BlockCore
import QCOW2Engine
import TestSupport
import TestTools
import Testing

/// The same workload again and again, each time with another host operation failing.
@Suite struct FaultTests {
  struct Scenario: Sendable, CustomTestStringConvertible {
    var shape: ImageShape
    var cacheSlices: Int?
    /// Which file has the fault; see ``Bench/faultyFiles``.
    var file = 0
    /// Faults tried are this many times fewer.
    var stride = 1
    var testDescription: String {
      "\(shape.testDescription), cache \(cacheSlices.map(String.init) ?? "whole")"
        + (file > 0 ? ", file \(file)" : "")
    }
  }

  static let scenarios: [Scenario] = {
    var scenarios: [Scenario] = []
    for contents in ImageShape.Contents.allCases {
      scenarios.append(Scenario(shape: ImageShape(clusterBits: 9, contents: contents)))
      scenarios.append(
        Scenario(shape: ImageShape(clusterBits: 12, contents: contents), cacheSlices: 1))
    }
    let wide = ImageShape(clusterBits: 9, refcountOrder: 6, contents: .prefilled)
    scenarios.append(Scenario(shape: wide, cacheSlices: 2))
    scenarios.append(Scenario(shape: ImageShape(clusterBits: 9, version: 2, contents: .snapshot)))
    scenarios.append(Scenario(shape: .nearGrowth))
    for (number, shape) in ImageShape.featured.enumerated() {
      let files =
        1 + (shape.features.dataFile == nil ? 0 : 1)
        + (shape.features.backing.map { $0 == .layer ? 2 : 1 } ?? 0)
      for file in 0..<files {
        let slices = number % 2 == 0 ? nil : 1
        scenarios.append(Scenario(shape: shape, cacheSlices: slices, file: file, stride: 6))
      }
    }
    return scenarios
  }()

  @Test("One host error fails one request cleanly", arguments: scenarios)
  func oneHostErrorFailsOneRequest(scenario: Scenario) throws {
    try each(scenario, stride: 1) { Fault(number: $0, errno: .io) }
  }

  @Test(
    "An operation that reports an error although it took effect does no harm", arguments: scenarios)
  func anErrorAfterTheEffectDoesNoHarm(scenario: Scenario) throws {
    try each(scenario, stride: 2) { Fault(number: $0, errno: .io, takesEffect: true) }
  }

  @Test("A full host file system fails writes until there is room again", arguments: scenarios)
  func aFullHostFailsWrites(scenario: Scenario) throws {
    try each(scenario, of: .write, stride: 2) {
      Fault(.write, number: $0, errno: .noSpace, isPermanent: true)
    }
    try each(scenario, of: .zero, stride: 1) {
      Fault(.zero, number: $0, errno: .noSpace, isPermanent: true)
    }
    try each(scenario, of: .resize, stride: 1) {
      Fault(.resize, number: $0, errno: .noSpace, isPermanent: true)
    }
    try each(scenario, of: .allocate, stride: 1) {
      Fault(.allocate, number: $0, errno: .noSpace, isPermanent: true)
    }
  }

  @Test("A failed sync sticks, and no metadata is written after it", arguments: scenarios)
  func aFailedSyncSticks(scenario: Scenario) throws {
    try each(scenario, of: .sync, stride: 1) { Fault(.sync, number: $0, errno: .io) }
  }

  /// Runs the workload once without a fault to count operations, then with each fault.
  private func each(
    _ scenario: Scenario, of kind: Fault.Kind? = nil, stride step: Int, _ fault: (Int) -> Fault
  ) throws {
    let seed = testSeed("fault")
    let clean = try FaultRun(scenario, fault: nil, seed: seed)
    #expect(clean.problems.isEmpty, "without a fault, seed \(seed): \(clean.problems)")
    let total = clean.faulty.counts[kind, default: 0]
    for number in stride(from: 1, through: total, by: step * scenario.stride) {
      let run = try FaultRun(scenario, fault: fault(number), seed: seed)
      #expect(
        run.problems.isEmpty,
        "\(run.faulty.failures) number \(number) of \(total), seed \(seed): \(run.problems)")
      if !run.problems.isEmpty { return }
    }
  }
}

/// One run of a workload with a fault armed after opening.
struct FaultRun {
  let bench: Bench
  /// The layer over the file that has the fault.
  let faulty: FaultyFile
  private(set) var problems: [String] = []

  init(_ scenario: FaultTests.Scenario, fault: Fault?, seed: UInt64) throws {
    bench = Bench(scenario.shape.builder, schedule: seed)
    scenario.shape.adjust(bench)
    bench.allow(fault)
    faulty = bench.faultyFiles[scenario.file]
    bench.options.workers = 2
    bench.options.slotsPerWorker = 3
    bench.options.dirtyAgeMilliseconds = 1_000_000
    bench.options.cacheBytes = scenario.cacheSlices.map {
      $0 * min(1 << scenario.shape.clusterBits, 4096)
    }
    let found = Box<[String]>([])
    let bench = bench
    do {
      try bench.host.run {
        found.value = await FaultRun.carryOut(bench, scenario, fault, seed)
      }
    } catch { found.value.append("\(error)") }
    problems = found.value
    if problems.isEmpty { checkImage(hasFault: fault != nil) }
  }

  private static func carryOut(
    _ bench: Bench, _ scenario: FaultTests.Scenario, _ fault: Fault?, _ seed: UInt64
  ) async -> [String] {
    do {
      let image = try await bench.open()
      let faulty = bench.faultyFiles[scenario.file]
      faulty.fault = fault
      var problems = await run(bench, image, scenario, operations: 40, seed, mayFail: fault)
      if !problems.isEmpty { return problems }
      if fault != nil { faulty.fault = nil }
      if faulty.failures.contains(.sync) { return await afterLostSync(bench, image) }
      problems = await run(bench, image, scenario, operations: 15, seed &+ 1, mayFail: nil)
      if !problems.isEmpty { return problems.map { "after the fault: \($0)" } }
      try await image.close()
      return []
    } catch { return ["\(error)"] }
  }

  private static func run(
    _ bench: Bench, _ image: Image, _ scenario: FaultTests.Scenario, operations: Int,
    _ seed: UInt64, mayFail fault: Fault?
  ) async -> [String] {
    var options = WorkloadOptions()
    options.operations = operations
    options.workers = 2
    options.depth = 3
    options.regions = scenario.shape.crashRegions
    options.maximumLength = 12
    options.weights = [15, 40, 6, 8, 16, 10, 8]
    if scenario.shape.isNearGrowth { options.weights = [4, 80, 2, 6, 4, 2, 2] }
    options.maintainsEvery = 2
    scenario.shape.adjust(&options)
    options.allow(fault, isEnciphered: scenario.shape.features.cipher != nil)
    let workload = Workload(
      image: image, files: bench.files, model: bench.model, options: options, seed: seed)
    workload.toleratesFailures = fault != nil
    await workload.run()
    let faulty = bench.faultyFiles[scenario.file]
    let allowed = [fault?.errno, faulty.failures.contains(.sync) ? .io : nil]
    let wrong = workload.failures.filter { !allowed.contains($0) }
    return workload.problems + wrong.map { "a request failed with errno \($0.code)" }
  }

  /// Every flush must fail now, and nothing may be written any more.
  private static func afterLostSync(_ bench: Bench, _ image: Image) async -> [String] {
    let events = bench.recording.events.count
    let driver = MiniWorker(target: image, files: bench.files, worker: 0)
    let buffer = IOBuffer(count: 512)
    for operation in [BlockOperation.flush, .write, .discard, .writeZeroes, .flush] {
      let request = BlockRequest(
        operation, length: operation == .flush ? 0 : 512,
        data: operation == .write ? buffer.data : .none)
      if await driver.perform(request, slot: 0) != .io {
        return ["\(operation) did not fail with EIO after a lost sync"]
      }
    }
    await image.maintain()
    if (try? await image.close()) != nil { return ["close succeeded after a lost sync"] }
    return bench.recording.events.count == events
      ? [] : ["\(bench.recording.events.last?.kind.rawValue ?? "") after a lost sync"]
  }

  private mutating func checkImage(hasFault: Bool) {
    let verifier = bench.verifier()
    // A sync that fails between the halves of an entry leaves what a power cut there leaves.
    verifier.allowsStaleBitmaps = faulty.failures.contains(.sync)
    let report = verifier.check()
    problems += report.errors.prefix(3)
    if !hasFault && report.leaks > 0 { problems.append("\(report.leaks) leaks") }
    problems += bench.snapshotProblems(verifier)
    if faulty.failures.contains(.sync) {
      checkAfterLostSync(verifier)
    } else {
      problems += bench.contentProblems(verifier)
    }
  }

  /// What the image holds is what a crash may leave.
  private mutating func checkAfterLostSync(_ verifier: ImageVerifier) {
    let now = bench.clock.tick()
    let flushed = bench.model.lastFlushStart(before: now)
    let zeros = IOBuffer(count: 512)
    for sector in bench.model.touched {
      let found = verifier.sector(sector) ?? UnsafeRawPointer(zeros.base)
      if let problem = bench.model.checkCrash(
        found, sector: sector, crash: now, flushedBefore: flushed)
      {
        problems.append("after a lost sync: " + problem)
        return
      }
    }
  }
}
