import BlockCore
import QCOW2Engine
import TestSupport
import TestTools
import Testing

/// Random requests against the model of the disk, over the whole matrix of image shapes.
@Suite struct ModelTests {
  /// Opens, runs the workload, closes; returns everything that was wrong.
  private func problems(
    _ bench: Bench, _ options: WorkloadOptions, sharesSectors: Bool = false, seed: UInt64
  ) throws -> [String] {
    let result = Box<[String]>([])
    bench.options.workers = options.workers
    bench.options.slotsPerWorker = options.depth
    bench.memory.forbidsOverlap = !options.overlaps && !sharesSectors
    bench.dataMemory?.forbidsOverlap = !options.overlaps
    try bench.host.run {
      let image = try await bench.open()
      let workload = Workload(
        image: image, files: bench.files, model: bench.model, options: options, seed: seed)
      await workload.run()
      result.value = workload.problems
      if result.value.isEmpty {
        do { try await image.close() } catch { result.value.append("close: \(error)") }
      }
    }
    if !result.value.isEmpty { return result.value }
    return bench.memory.violations + (bench.dataMemory?.violations ?? []) + bench.problems()
  }

  private func run(
    _ shape: ImageShape, seed: UInt64, schedule: UInt64?, cacheSlices: Int? = nil,
    isImmediate: Bool = false, isBlockDevice: Bool = false,
    clears: Bool = false,
    _ adjust: (inout WorkloadOptions) -> Void
  ) throws {
    let bench = Bench(
      shape.builder, schedule: schedule,
      traits: HostFileTraits(isBlockDevice: isBlockDevice, offsetAlignment: shape.alignment),
      isImmediate: isImmediate)
    shape.adjust(bench)
    if isBlockDevice {
      bench.memory.clears = clears
      for bytes in [bench.bytes] + (bench.dataMemory.map { [$0.bytes] } ?? []) {
        bytes.fill(0xee, count: 64 << 20, at: (bytes.length + 511) & ~511)
      }
    }
    if let cacheSlices {
      bench.options.cacheBytes = cacheSlices * min(1 << shape.clusterBits, 4096)
      bench.memory.allowsWritesDuringReads = true
    }
    var options = WorkloadOptions()
    options.regions = shape.regions
    options.maximumLength = shape.clusterBits == 9 ? 12 : shape.clusterBits == 12 ? 24 : 200
    shape.adjust(&options)
    adjust(&options)
    let found = try problems(bench, options, sharesSectors: shape.sharesSectors, seed: seed)
    #expect(found.isEmpty, "\(shape.testDescription), seed \(seed): \(found.prefix(5))")
  }

  @Test(
    "One request at a time keeps to the model", arguments: ImageShape.matrix + ImageShape.featured)
  func oneRequestAtATimeKeepsToTheModel(shape: ImageShape) throws {
    let seed = testSeed("sequential")
    try run(shape, seed: seed, schedule: nil, isImmediate: true) {
      $0.operations = shape.clusterBits == 21 ? 120 : 300
    }
  }

  @Test(
    "Sixteen requests at once on four workers keep to the model",
    arguments: ImageShape.matrix + ImageShape.featured)
  func concurrentRequestsKeepToTheModel(shape: ImageShape) throws {
    let seed = testSeed("concurrent")
    try run(shape, seed: seed, schedule: seed &+ 77) {
      $0.operations = shape.clusterBits == 21 ? 100 : 300
      $0.workers = 4
      $0.depth = 4
    }
  }

  @Test(
    "Overlapping requests leave one of their values",
    arguments: ImageShape.matrix + ImageShape.featured)
  func overlappingRequestsLeaveOneOfTheirValues(shape: ImageShape) throws {
    let seed = testSeed("overlapping")
    try run(shape, seed: seed, schedule: seed &+ 99) {
      $0.operations = shape.clusterBits == 21 ? 100 : 300
      $0.workers = 4
      $0.depth = 4
      $0.overlaps = true
    }
  }

  @Test(
    "A block device, full of old bytes and not growing, keeps to the model",
    arguments: [9, 12, 16],
    [false, true])
  func blockDevicesKeepToTheModel(clusterBits: Int, clears: Bool) throws {
    let seed = testSeed("block device")
    let shape = ImageShape(clusterBits: clusterBits, contents: .prefilled)
    let bench = Bench(
      shape.builder, schedule: seed, traits: HostFileTraits(isBlockDevice: true))
    bench.memory.clears = clears
    let used = bench.bytes.length
    bench.bytes.fill(0xee, count: 64 << 20, at: used)
    var options = WorkloadOptions()
    options.regions = shape.regions
    options.operations = 300
    options.workers = 2
    options.depth = 4
    let found = try problems(bench, options, seed: seed)
    #expect(found.isEmpty, "seed \(seed): \(found.prefix(5))")
    #expect(bench.bytes.length == used + (64 << 20))
  }

  @Test(
    "A block device keeps to the model with every feature", arguments: ImageShape.featured,
    [false, true])
  func blockDevicesKeepToTheModelWithEveryFeature(shape: ImageShape, clears: Bool) throws {
    let seed = testSeed("block device")
    try run(shape, seed: seed, schedule: seed &+ 31, isBlockDevice: true, clears: clears) {
      $0.workers = 2
      $0.depth = 4
    }
  }

  @Test(
    "A cache of one or two slices changes nothing",
    arguments: ImageShape.matrix + ImageShape.featured, [1, 2])
  func tinyCachesChangeNothing(shape: ImageShape, slices: Int) throws {
    let seed = testSeed("tiny cache")
    try run(shape, seed: seed, schedule: seed &+ 5, cacheSlices: slices) {
      $0.operations = shape.clusterBits == 21 ? 60 : 250
      $0.workers = 2
      $0.depth = 4
    }
  }
}

/// A value that a simulation hands out; its one thread orders all access.
final class Box<Value>: @unchecked Sendable {
  var value: Value
  init(_ value: Value) { self.value = value }
}
