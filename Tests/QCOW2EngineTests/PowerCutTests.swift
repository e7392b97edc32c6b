import BlockCore
import Glibc
import QCOW2Engine
import TestSupport
import TestTools
import Testing

/// Cuts the power at every moment of recorded workloads.
@Suite struct PowerCutTests {
  struct Scenario: Sendable, CustomTestStringConvertible {
    var shape: ImageShape
    var cacheSlices: Int?
    var depth = 4
    var operations = 60
    var writesBackAlways = false
    var overlaps = false
    /// See ``WorkloadOptions/weights``.
    var weights = [5, 40, 6, 10, 18, 10, 8]

    var testDescription: String {
      "\(shape.testDescription), cache \(cacheSlices.map(String.init) ?? "whole"), depth \(depth)"
        + (writesBackAlways ? ", write-back always" : "") + (overlaps ? ", overlapping" : "")
    }
  }

  static let scenarios: [Scenario] = {
    var scenarios: [Scenario] = []
    for contents in ImageShape.Contents.allCases {
      for bits in [9, 12] {
        let shape = ImageShape(clusterBits: bits, contents: contents)
        scenarios.append(Scenario(shape: shape))
        scenarios.append(Scenario(shape: shape, cacheSlices: 1, depth: 2))
        scenarios.append(Scenario(shape: shape, cacheSlices: 2, writesBackAlways: true))
        scenarios.append(Scenario(shape: shape, depth: 1, writesBackAlways: true))
        scenarios.append(Scenario(shape: shape, overlaps: true))
      }
    }
    let small = ImageShape(clusterBits: 9, refcountOrder: 6, contents: .prefilled)
    scenarios.append(Scenario(shape: small, cacheSlices: 1))
    let bits = ImageShape(clusterBits: 9, refcountOrder: 0, contents: .prefilled)
    scenarios.append(Scenario(shape: bits, cacheSlices: 1))
    let old = ImageShape(clusterBits: 9, version: 2, contents: .snapshot)
    scenarios.append(Scenario(shape: old, cacheSlices: 1))
    for shape in ImageShape.featured {
      var scenario = Scenario(shape: shape, operations: 45)
      if shape.copiesOnRead { scenario.weights[0] = 40 }
      scenarios.append(scenario)
      scenario.cacheSlices = 1
      scenario.writesBackAlways = true
      scenario.depth = 2
      scenario.operations = 30
      scenarios.append(scenario)
    }
    for contents in ImageShape.Contents.allCases {
      let shape = ImageShape(clusterBits: 9, contents: contents, isLazy: true)
      scenarios.append(Scenario(shape: shape))
      scenarios.append(Scenario(shape: shape, cacheSlices: 1, depth: 2))
      scenarios.append(Scenario(shape: shape, cacheSlices: 2, writesBackAlways: true))
      scenarios.append(Scenario(shape: shape, overlaps: true))
    }
    scenarios += onDevices
    var lazyGrowth = ImageShape.nearGrowth
    lazyGrowth.isLazy = true
    scenarios.append(
      Scenario(shape: lazyGrowth, operations: 70, weights: [0, 80, 0, 6, 6, 4, 4]))
    scenarios.append(
      Scenario(shape: .nearGrowth, operations: 70, weights: [0, 80, 0, 6, 6, 4, 4]))
    // Part of a description: for a closer look at some of them.
    guard let wanted = getenv("QUBLK_SCENARIOS").map({ String(cString: $0) }) else {
      return scenarios
    }
    return scenarios.filter { $0.testDescription.contains(wanted) }
  }()

  /// Where what is behind the image was somebody's, and clusters are cleared when they are reserved.
  private static let onDevices: [Scenario] = {
    let plain = [ImageShape.Contents.empty, .prefilled, .snapshot].flatMap { contents in
      [9, 12].map { ImageShape(clusterBits: $0, contents: contents) }
    }
    let featured =
      ImageShape.extended.prefix(2) + ImageShape.compressing.suffix(3) + ImageShape.backed.suffix(3)
    return [ImageShape.Device.clearing, .plain].flatMap { device in
      (plain + featured.filter { $0.clusterBits < 16 }).enumerated().map { number, shape in
        var scenario = Scenario(shape: shape, operations: 45)
        scenario.shape.device = device
        if number % 2 == 1 {
          (scenario.cacheSlices, scenario.depth) = (1, 2)
          scenario.writesBackAlways = true
        }
        return scenario
      }
    }
  }()

  @Test(
    "Every crash state opens, checks clean and keeps what was flushed",
    arguments: share(of: scenarios))
  func everyCrashStateKeepsWhatWasFlushed(scenario: Scenario) throws {
    let seed = testSeed("power cut")
    for round in 0..<UInt64(testSetting("QUBLK_POWER_CUT_ROUNDS", default: 1)) {
      let bench = try record(scenario, seed: seed &+ round)
      if scenario.shape.isNearGrowth {
        #expect(bench.bytes.be64(48) != bench.original.be64(48), "the table did not grow")
      }
      #expect(bench.memory.violations.isEmpty, "\(bench.memory.violations.prefix(3))")
      let states = try CrashCheck(bench, seed: seed &+ round).run(perCut: 2)
      print("power cut: \(states) crash states, \(scenario.testDescription)")
    }
  }

  /// Runs the workload and leaves the image as it is, without closing it.
  ///
  /// With a fault, requests may fail, and the model knows which did.
  func record(_ scenario: Scenario, seed: UInt64, fault: Fault? = nil) throws -> Bench {
    let bench = Bench(
      scenario.shape.builder, schedule: seed,
      traits: HostFileTraits(isBlockDevice: scenario.shape.device != nil),
      room: scenario.shape.device == nil ? 0 : scenario.shape.clusterBits == 9 ? 1 << 20 : 6 << 20)
    scenario.shape.adjust(bench)
    bench.options.workers = 2
    bench.options.slotsPerWorker = scenario.depth
    bench.options.dirtyAgeMilliseconds = scenario.writesBackAlways ? 0 : 1_000_000
    bench.options.cacheBytes = scenario.cacheSlices.map {
      $0 * min(1 << scenario.shape.clusterBits, 4096)
    }
    var options = WorkloadOptions()
    options.operations = scenario.operations
    options.workers = 2
    options.depth = scenario.depth
    options.regions = scenario.shape.crashRegions
    options.maximumLength = 12
    options.weights = scenario.weights
    options.overlaps = scenario.overlaps
    scenario.shape.adjust(&options)
    options.maintainsEvery = 2
    let workload = options
    try bench.host.run {
      let image = try await bench.open()
      let workload = Workload(
        image: image, files: bench.files, model: bench.model, options: workload, seed: seed)
      workload.toleratesFailures = fault != nil
      bench.faulty.fault = fault
      await workload.run()
      #expect(workload.problems.isEmpty, "\(workload.problems)")
    }
    return bench
  }
}

/// Checks all crash states of one recorded run.
struct CrashCheck {
  private let bench: Bench
  private let seed: UInt64
  /// See ``CrashEnumerator/failedTookEffect``.
  private let failedTookEffect: Bool
  private let opener = SimulatedHost(seed: nil)
  /// What else is wrong with a state, in words.
  private let extra: @Sendable (ImageBytes, ImageVerifier) -> String?

  init(
    _ bench: Bench, seed: UInt64, failedTookEffect: Bool = false,
    extra: @escaping @Sendable (ImageBytes, ImageVerifier) -> String? = { _, _ in nil }
  ) {
    self.bench = bench
    self.failedTookEffect = failedTookEffect
    self.seed = seed
    self.extra = extra
  }

  /// Returns the number of states checked; records an issue at the first bad one.
  func run(perCut: Int) throws -> Int {
    let crashes = CrashEnumerator(
      originals: bench.originals, events: bench.recording.events, seed: seed)
    crashes.failedTookEffect = failedTookEffect
    if bench.builder.features.isExtended { crashes.tearsWords = tearsWords }
    let touched = bench.model.touched
    let zeros = IOBuffer(count: 512)
    var failure: String?
    crashes.visit(perCut: perCut) { state in
      failure = problem(state, touched, zeros) ?? continuation(of: state, crashes.count)
      return failure == nil
    }
    if let failure { Issue.record("seed \(seed): \(failure)") }
    return crashes.count
  }

  /// Whether a write is of a slice of an L2 table: its sectors may be torn between any two words.
  private func tearsWords(_ event: HostEvent) -> Bool {
    let l1 = Int(bench.bytes.be64(40))
    let cluster = UInt64(event.offset) >> UInt64(bench.builder.clusterBits)
    return event.file == 0 && event.length % 512 == 0
      && (0..<Int(bench.bytes.be32(36))).contains { index in
        let entry = bench.bytes.be64(l1 + index * 8) & 0x00ff_ffff_ffff_fe00
        return entry != 0 && entry >> UInt64(bench.builder.clusterBits) == cluster
      }
  }

  private func problem(
    _ state: CrashEnumerator.State, _ touched: [Int], _ zeros: IOBuffer
  ) -> String? {
    if let problem = rebuildIfDirty(state.bytes) { return "\(state.description): \(problem)" }
    let verifier = bench.verifier(state.files)
    verifier.allowsStaleBitmaps = true
    let report = verifier.check()
    if let error = report.errors.first { return "\(state.description): \(error)" }
    let flushed = bench.model.lastFlushStart(before: state.time)
    for sector in touched {
      let found = verifier.sector(sector) ?? UnsafeRawPointer(zeros.base)
      if let problem = bench.model.checkCrash(
        found, sector: sector, crash: state.time, flushedBefore: flushed)
      {
        return "\(state.description), flushed before \(flushed): \(problem)"
      }
      if let problem = rawProblem(state, sector, flushed) {
        return "\(state.description), flushed before \(flushed): \(problem)"
      }
    }
    let other = bench.snapshotProblems(verifier).first ?? extra(state.bytes, verifier)
    return other.map { "\(state.description): \($0)" }
  }

  /// What a sector of a raw data file holds that the guest's disk must not.
  private func rawProblem(
    _ state: CrashEnumerator.State, _ sector: Int, _ flushed: UInt64
  ) -> String? {
    guard bench.builder.features.dataFile == .raw else { return nil }
    return bench.model.checkCrash(
      UnsafeRawPointer(state.files[1].base + sector * 512), sector: sector, crash: state.time,
      flushedBefore: flushed)
  }

  /// Opens the image; in every 40th state also writes on, closes and checks again.
  private func continuation(of state: CrashEnumerator.State, _ number: Int) -> String? {
    let writesOn = number % 40 == 0
    let contents = writesOn ? state.files.map { $0.copy() } : state.files
    let result = Box<String?>(nil)
    do {
      try opener.run {
        let files = self.bench.immediateFiles(contents)
        let image = try await self.bench.open(files, options: ImageOptions())
        if writesOn { result.value = await self.writeOn(image, files) }
      }
    } catch { return "\(state.description): opening failed: \(error)" }
    if writesOn, result.value == nil {
      let verifier = bench.verifier(contents)
      verifier.allowsStaleBitmaps = true
      result.value = verifier.check().errors.first
    }
    return result.value.map { "\(state.description), then more writes: \($0)" }
  }

  private func writeOn(_ image: Image, _ files: [any HostFile]) async -> String? {
    let driver = MiniWorker(target: image, files: files, worker: 0)
    let buffer = IOBuffer(count: 4096)
    buffer.base.initializeMemory(as: UInt8.self, repeating: 0x77, count: 4096)
    for step in 0..<12 {
      let offset = UInt64(step * 7919 * 512) % (image.size - 4096) & ~511
      let request = BlockRequest(
        step % 4 == 3 ? .discard : .write, offset: GuestOffset(offset), length: 4096,
        data: buffer.data)
      let errno = await driver.perform(request, slot: 0)
      // What a crash leaves reserved is lost: the device may be full.
      if let errno, errno != .noSpace || !bench.memory.traits.isBlockDevice {
        return "errno \(errno.code)"
      }
    }
    do { try await image.close() } catch { return "close: \(error)" }
    return nil
  }
}
