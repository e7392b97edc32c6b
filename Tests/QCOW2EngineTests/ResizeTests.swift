import BlockCore
import QCOW2Engine
import TestSupport
import TestTools
import Testing

/// The size of the disk, and VM state, while everything else goes on.
@Suite(.serialized) struct ResizeTests {
  struct Scenario: Sendable, CustomTestStringConvertible {
    var shape: ImageShape
    var cacheSlices: Int?
    var testDescription: String {
      "\(shape.testDescription), cache \(cacheSlices.map(String.init) ?? "whole")"
    }

    /// Two ends of the disk to go to and fro between; guests stay below both.
    var sizes: (small: UInt64, large: UInt64) {
      (UInt64(shape.size) & ~511, UInt64(shape.size) * 5 / 512 * 512)
    }

    var bench: (UInt64) -> Bench {
      { seed in
        let bench = Bench(shape.builder, schedule: seed)
        bench.options.workers = 2
        bench.options.slotsPerWorker = 3
        bench.options.dirtyAgeMilliseconds = 0
        bench.options.cacheBytes = cacheSlices.map { $0 * min(1 << shape.clusterBits, 4096) }
        return bench
      }
    }

    /// Guest requests stay away from the end of the disk, which moves.
    func workload(_ operations: Int) -> WorkloadOptions {
      var options = WorkloadOptions()
      options.operations = operations
      options.workers = 2
      options.depth = 3
      options.maximumLength = 12
      options.regions = [shape.crashRegions[0]]
      options.weights = [20, 40, 6, 6, 16, 8, 8]
      options.maintainsEvery = 2
      return options
    }
  }

  static let scenarios: [Scenario] = {
    var scenarios: [Scenario] = []
    for contents in [ImageShape.Contents.empty, .prefilled, .snapshot] {
      for bits in [9, 12] {
        let shape = ImageShape(clusterBits: bits, contents: contents)
        scenarios.append(Scenario(shape: shape))
        scenarios.append(Scenario(shape: shape, cacheSlices: 1))
      }
    }
    let wide = ImageShape(clusterBits: 9, refcountOrder: 6, contents: .prefilled)
    scenarios.append(Scenario(shape: wide))
    let old = ImageShape(clusterBits: 9, version: 2, contents: .prefilled)
    scenarios.append(Scenario(shape: old))
    return scenarios
  }()

  @Test(
    "Every power cut leaves one size or the other, and all else",
    arguments: share(of: scenarios))
  func everyPowerCutLeavesOneSize(scenario: Scenario) throws {
    let seed = testSeed("resize power cut")
    let bench = scenario.bench(seed)
    let sizes = scenario.sizes
    try bench.host.run {
      let image = try await bench.open()
      let workload = Workload(
        image: image, file: bench.file, model: bench.model, options: scenario.workload(50),
        seed: seed)
      await withTaskGroup(of: Void.self) { group in
        group.addTask { await workload.run() }
        group.addTask { await Self.resize(image, sizes, rounds: 2) }
      }
      #expect(workload.problems.isEmpty, "\(workload.problems)")
    }
    #expect(Self.movesOfL1(bench) > 0, "the L1 table did not move")
    let check = CrashCheck(bench, seed: seed) { bytes, verifier in
      let size = bytes.be64(24)
      if size & ~511 != sizes.small && size != sizes.large { return "the size is \(size)" }
      // Nobody writes behind the small end but VM state, which must never show.
      for sector in Int(sizes.small / 512)..<Int(size / 512) {
        guard let found = verifier.sector(sector) else { continue }
        if SectorPattern.change(in: found, sector: sector) != 0 { return "sector \(sector)" }
      }
      return nil
    }
    let states = try check.run(perCut: 2)
    print("resize power cut: \(states) crash states, \(scenario.testDescription)")
  }

  /// How often the header named another place of the L1 table. (After two moves it may be the first place again.)
  static func movesOfL1(_ bench: Bench) -> Int {
    var place = bench.original.be64(40)
    var moves = 0
    for event in bench.recording.events where event.kind == .write && event.file == 0 {
      guard event.offset <= 40, event.offset + event.length >= 48 else { continue }
      let first = 40 - Int(event.offset)
      let named = event.data[first..<(first + 8)].reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
      if named != place { moves += 1 }
      place = named
    }
    return moves
  }

  /// VM state, growth, VM state, shrinking, again and again.
  static func resize(_ image: Image, _ sizes: (small: UInt64, large: UInt64), rounds: Int) async {
    let state = IOBuffer(count: 40 << 10)
    state.base.initializeMemory(as: UInt8.self, repeating: 0x99, count: state.count)
    do {
      for _ in 0..<rounds {
        try await image.writeVMState(from: state.data, at: 1000)
        try await image.resize(to: sizes.large)
        try await image.writeVMState(from: state.data, at: 70_000)
        let found = IOBuffer(count: state.count)
        try await image.readVMState(into: found.data, at: 70_000)
        #expect(
          UnsafeRawBufferPointer(start: found.base, count: found.count).allSatisfy { $0 == 0x99 })
        try await image.resize(to: sizes.small)
        await image.maintain()
      }
    } catch { Issue.record("\(error)") }
    withExtendedLifetime(state) {}
  }

  @Test("After the last resize nothing is leaked and all data is there", arguments: scenarios)
  func nothingIsLeaked(scenario: Scenario) throws {
    let first = testSeed("resize")
    for seed in first..<(first + UInt64(testSetting("QUBLK_RESIZE_ROUNDS", default: 4))) {
      let bench = scenario.bench(seed)
      try bench.host.run {
        let image = try await bench.open()
        let workload = Workload(
          image: image, file: bench.file, model: bench.model, options: scenario.workload(150),
          seed: seed)
        await withTaskGroup(of: Void.self) { group in
          group.addTask { await workload.run() }
          group.addTask { await Self.resize(image, scenario.sizes, rounds: 4) }
        }
        #expect(workload.problems.isEmpty, "\(workload.problems)")
        try await image.close()
      }
      #expect(bench.problems().isEmpty, "seed \(seed): \(bench.problems().prefix(3))")
    }
  }

  @Test(
    "A host error in any step leaves a disk of one size, and leaks at worst", arguments: scenarios)
  func hostErrorsLeaveOneSize(scenario: Scenario) throws {
    let seed = testSeed("resize fault")
    let clean = try Self.faultRun(scenario, nil, seed)
    for number in stride(from: 1, through: clean.faulty.counts[nil, default: 0], by: 2) {
      for takesEffect in [false, true] {
        let fault = Fault(number: number, errno: .io, takesEffect: takesEffect)
        let bench = try Self.faultRun(scenario, fault, seed)
        let verifier = ImageVerifier(bench.bytes)
        let size = bench.bytes.be64(24)
        var problems = verifier.check().errors + bench.snapshotProblems(verifier)
        if bench.faulty.failures != [.sync] { problems += bench.contentProblems(verifier) }
        if size & ~511 != scenario.sizes.small && size != scenario.sizes.large {
          problems.append("the size is \(size)")
        }
        #expect(
          problems.isEmpty,
          "fault \(number) \(bench.faulty.failures), effect \(takesEffect): \(problems.prefix(3))")
        if !problems.isEmpty { return }
      }
    }
  }

  private static func faultRun(
    _ scenario: Scenario, _ fault: Fault?, _ seed: UInt64
  ) throws -> Bench {
    let bench = scenario.bench(seed)
    try bench.host.run {
      let image = try await bench.open()
      bench.faulty.fault = fault
      let state = IOBuffer(count: 20 << 10)
      let steps: [() async throws -> Void] = [
        { try await image.writeVMState(from: state.data, at: 512) },
        { try await image.resize(to: scenario.sizes.large) },
        { try await image.writeVMState(from: state.data, at: 9000) },
        { try await image.resize(to: scenario.sizes.small) },
      ]
      for step in steps {
        do { try await step() } catch {
          #expect(fault != nil, "\(error)")
        }
        await image.maintain()
      }
      let count = bench.faulty.counts
      withExtendedLifetime(state) {}
      if fault != nil { bench.faulty.fault = nil }
      if !bench.faulty.failures.contains(.sync) {
        let workload = Workload(
          image: image, file: bench.file, model: bench.model, options: scenario.workload(15),
          seed: seed)
        await workload.run()
        #expect(workload.problems.isEmpty, "\(workload.problems)")
        try await image.close()
      }
      if fault == nil { #expect(count[nil, default: 0] > 10) }
    }
    return bench
  }

  @Test("A resize waits for what is in flight, and keeps newcomers waiting")
  func resizeWaits() throws {
    let bench = Bench(ImageShape(clusterBits: 12, contents: .prefilled).builder, schedule: 7)
    bench.options.workers = 2
    try bench.host.run {
      let image = try await bench.open()
      let buffer = IOBuffer(count: 512)
      let read = BlockRequest(.read, length: 512, data: buffer.data)
      _ = await image.serve(read, worker: 0, slot: 0)
      func plans(_ slot: Int) -> Bool {
        withUnsafeTemporaryAllocation(of: HostTransfer.self, capacity: 4) { plan in
          if case .transfers = image.plan(read, worker: 0, slot: slot, into: plan) {
            true
          } else {
            false
          }
        }
      }
      #expect(plans(1))
      let isDone = Box(false)
      let old = image.size
      await withTaskGroup(of: Void.self) { group in
        group.addTask {
          do { try await image.resize(to: 64 << 20) } catch { Issue.record("\(error)") }
          isDone.value = true
        }
        for _ in 0..<50 { await Task.yield() }
        #expect(!isDone.value && image.size == old)
        #expect(!plans(2), "a request got in although a resize waits")
        let end = BlockRequest(.read, offset: GuestOffset(60 << 20), length: 512, data: buffer.data)
        group.addTask {
          #expect(await image.serve(end, worker: 1, slot: 0) == .done)
          #expect(isDone.value || image.size == 64 << 20)
        }
        for _ in 0..<50 { await Task.yield() }
        #expect(!isDone.value)
        _ = image.finish(worker: 0, slot: 1, failed: false)
      }
      #expect(plans(2))
      _ = image.finish(worker: 0, slot: 2, failed: false)
      withExtendedLifetime(buffer) {}
      try await image.close()
    }
    #expect(bench.problems().isEmpty, "\(bench.problems())")
  }

  @Test("A block device without room for a larger table keeps the old size")
  func fullDevice() throws {
    var builder = ImageBuilder()
    builder.clusterBits = 9
    builder.size = 100 << 10
    for cluster in 0..<60 { builder.mappings[cluster] = .data }
    let bytes = builder.build()
    let start = bytes.be64(40)
    bytes.setLength(bytes.length + 40 * 512)
    let file = MemoryFile(bytes, traits: HostFileTraits(isBlockDevice: true))
    let host = SimulatedHost(seed: nil)
    try host.run {
      let image = try await Image.open(file, options: ImageOptions())
      let error = await #expect(throws: ImageError.self) { try await image.resize(to: 1 << 30) }
      #expect(error?.errno == .noSpace && image.size == 100 << 10)
      try await image.resize(to: 4 << 20)
      try await image.close()
    }
    let report = ImageVerifier(bytes).check()
    #expect(report.errors.isEmpty && report.leaks == 0, "\(report) of \(bytes.length / 512)")
    #expect(bytes.be64(40) != start && bytes.be64(24) == 4 << 20)
  }

  @Test("Four threads read and write while the disk's size goes up and down", arguments: [9, 12])
  func threadsGoOn(clusterBits: Int) async throws {
    let seed = testSeed("resize threads")
    let builder = ThreadRun.builder(clusterBits: clusterBits, hasSnapshot: clusterBits == 12)
    let file = MemoryFile(builder.build(capacity: 1 << 26))
    file.yields = true
    let image = try await Image.open(file, options: ThreadRun.options())
    let size = UInt64(builder.size)
    let clients = (0..<16).map { number in
      ThreadClient(image: image, file: file, number: number, seed: seed)
    }
    await ThreadRun.run(clients, on: image) { _ in
      await Self.resize(image, (size, size * 6), rounds: 12)
    }
    ThreadRun.expectSound(ImageVerifier(file.bytes), clients)
  }
}
