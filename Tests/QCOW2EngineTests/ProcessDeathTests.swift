import BlockCore
import Glibc
import QCOW2Format
import TestSupport
import TestTools
import Testing

@testable import QCOW2Engine

/// Ends the process, so to say, behind each store into the metadata memory: docs/design.md, section 6.
@Suite struct ProcessDeathTests {
  struct Scenario: Sendable, CustomTestStringConvertible {
    var shape: ImageShape
    var cacheSlices: Int?
    var operations = 40
    var writesBackAlways = false
    /// Behind one of so many stores.
    var every = 8

    var testDescription: String {
      "\(shape.testDescription), cache \(cacheSlices.map(String.init) ?? "whole")"
        + (writesBackAlways ? ", write-back always" : "")
    }
  }

  static let scenarios: [Scenario] = {
    var scenarios: [Scenario] = []
    for contents in ImageShape.Contents.allCases {
      let shape = ImageShape(clusterBits: 9, contents: contents)
      scenarios.append(Scenario(shape: shape))
      scenarios.append(Scenario(shape: shape, cacheSlices: 2, writesBackAlways: true))
    }
    let large = ImageShape(clusterBits: 12, contents: .prefilled)
    scenarios.append(Scenario(shape: large, writesBackAlways: true))
    scenarios.append(
      Scenario(shape: ImageShape(clusterBits: 9, contents: .snapshot, isLazy: true)))
    var device = ImageShape(clusterBits: 12, contents: .empty)
    device.device = .clearing
    scenarios.append(Scenario(shape: device))
    var growth = Scenario(shape: .nearGrowth, operations: 60)
    growth.every = 20
    scenarios.append(growth)
    let featured =
      ImageShape.extended.prefix(3) + ImageShape.compressing.prefix(2) + ImageShape.backed.prefix(2)
      + ImageShape.externalData.prefix(3)
    for (number, shape) in featured.filter({ $0.clusterBits < 16 }).enumerated() {
      scenarios.append(
        Scenario(
          shape: shape, cacheSlices: number % 2 == 0 ? nil : 1, operations: 30,
          writesBackAlways: number % 3 == 0))
    }
    return scenarios
  }()

  @Test(
    "Whenever the process dies, its memory makes a sound image with all acknowledged writes",
    arguments: share(of: scenarios))
  func everyMomentMakesASoundImage(scenario: Scenario) throws {
    let seed = testSeed("process death")
    let bench = Bench(
      scenario.shape.builder, schedule: seed,
      traits: HostFileTraits(isBlockDevice: scenario.shape.device != nil),
      room: scenario.shape.device == nil ? 0 : 6 << 20)
    scenario.shape.adjust(bench)
    bench.options.workers = 2
    bench.options.slotsPerWorker = 4
    bench.options.dirtyAgeMilliseconds = scenario.writesBackAlways ? 0 : 1_000_000
    bench.options.cacheBytes = scenario.cacheSlices.map {
      $0 * min(1 << scenario.shape.clusterBits, 4096)
    }
    let deaths = Deaths(bench, seed: seed, every: scenario.every)
    let workload = Self.workload(scenario)
    try bench.host.run {
      let image = try await bench.open()
      deaths.watch(image)
      let workload = Workload(
        image: image, files: bench.files, model: bench.model, options: workload, seed: seed)
      await workload.run()
      #expect(workload.problems.isEmpty, "\(workload.problems)")
      deaths.end(image)
    }
    if let problem = deaths.problem { Issue.record("seed \(seed): \(problem)") }
    #expect(deaths.checked > 1, "\(deaths.stores) stores")
    print("process death: \(deaths.checked) of \(deaths.stores), \(scenario.testDescription)")
  }

  private static func workload(_ scenario: Scenario) -> WorkloadOptions {
    var options = WorkloadOptions()
    options.operations = scenario.operations
    options.workers = 2
    options.depth = 4
    options.regions = scenario.shape.crashRegions
    options.maximumLength = 12
    options.weights =
      scenario.shape.isNearGrowth ? [0, 80, 0, 6, 6, 4, 4] : [5, 40, 6, 8, 18, 10, 8]
    options.maintainsEvery = 2
    scenario.shape.adjust(&options)
    return options
  }

  @Test("The same behind each single store, of few requests and a size change")
  func everySingleStore() throws {
    for shape in [ImageShape(clusterBits: 9, contents: .snapshot), .extended[0]] {
      let bench = Bench(shape.builder, schedule: 5)
      bench.options.cacheBytes = 4 << 12
      let deaths = Deaths(bench, seed: 5, every: 1)
      deaths.asksQEMU = !shape.features.isExtended
      try bench.host.run {
        let image = try await bench.open()
        deaths.watch(image)
        let driver = MiniWorker(target: image, files: bench.files, worker: 0)
        for sectors in [3..<5, 40..<49, 64..<66] {
          #expect(await bench.write(sectors, by: driver) == nil)
        }
        try await image.flush()
        #expect(await bench.write(41..<44, by: driver) == nil)
        if !image.hasSnapshots { try await image.resize(to: image.size << 4) }
        deaths.end(image)
        try await image.close()
      }
      if let problem = deaths.problem { Issue.record("\(shape.testDescription): \(problem)") }
      #expect(deaths.checked == deaths.stores && deaths.stores > 50, "\(deaths.stores) stores")
    }
  }
}

extension Image {
  fileprivate var hasSnapshots: Bool { header.snapshotCount > 0 }
}

/// Looks, behind stores into the metadata memory of an image, at what a later process would make of it.
///
/// The process is not ended: memory and host file are looked at as they are at that moment.
private final class Deaths: @unchecked Sendable {  // why: one thread per simulation
  private let bench: Bench
  private let every: Int
  private var random: SeededGenerator
  private let scratch = ImageBytes()
  private(set) var stores = 0
  private(set) var checked = 0
  /// The first that was found.
  private(set) var problem: String?
  private let directory = getenv("TMPDIR").map { String(cString: $0) } ?? "/tmp"
  /// Every so often, QEMU's check is asked, too.
  var asksQEMU = false

  init(_ bench: Bench, seed: UInt64, every: Int) {
    self.bench = bench
    self.every = every
    random = SeededGenerator(seed: seed)
  }

  func watch(_ image: Image) {
    let memory = Unowned(image.metadataMemory)
    image.metadataMemory.afterStore = { [self] in
      stores += 1
      guard problem == nil, random.below(every) == 0 else { return }
      checked += 1
      problem = look(FoundMetadata(memory.value)).map { "behind store \(stores): \($0)" }
    }
  }

  func end(_ image: Image) { image.metadataMemory.afterStore = nil }

  private func look(_ found: FoundMetadata) -> String? {
    if let problem = found.problems.first { return problem }
    if let problem = found.unmarkedDifference(bench.bytes) { return problem }
    scratch.assign(bench.bytes)
    let time = bench.clock.tick()
    return FoundMetadataWriteBack(found: found, image: scratch).run { stage in
      let verifier = bench.verifier([scratch] + (bench.dataMemory.map { [$0.bytes] } ?? []))
      verifier.allowsStaleBitmaps = true
      if let error = verifier.check().errors.first { return "after \(stage): \(error)" }
      return stage == "L1" ? contentProblem(verifier, time) ?? problemOfQEMU() : nil
    }
  }

  /// What of the acknowledged writes is not there.
  private func contentProblem(_ verifier: ImageVerifier, _ time: UInt64) -> String? {
    let zeros = IOBuffer(count: 512)
    for sector in bench.model.touched {
      let found = verifier.sector(sector) ?? UnsafeRawPointer(zeros.base)
      if let problem = bench.model.checkCrash(
        found, sector: sector, crash: time, flushedBefore: time)
      {
        return problem
      }
    }
    return bench.snapshotProblems(verifier).first
  }

  /// Of some states, what QEMU finds wrong, where it is installed.
  private func problemOfQEMU() -> String? {
    guard asksQEMU, checked % 16 == 0 else { return nil }
    let path = "\(directory)/qublk-death-\(getpid())"
    defer { unlink(path) }
    guard let file = fopen(path, "w") else { return "no file at \(path)" }
    let count = fwrite(scratch.base, 1, scratch.length, file)
    guard fclose(file) == 0, count == scratch.length else { return "\(path) is not whole" }
    guard let outcome = try? shell("qemu-img check -q -f qcow2 \(path)") else { return "no bash" }
    // 3: nothing but leaks; 127: no qemu-img.
    return [0, 3, 127].contains(outcome.status) ? nil : "qemu-img check: \(outcome.output)"
  }
}

/// A reference that its holder does not keep alive.
private struct Unowned: @unchecked Sendable {  // why: one thread per simulation
  unowned let value: MetadataMemory
  init(_ value: MetadataMemory) { self.value = value }
}
