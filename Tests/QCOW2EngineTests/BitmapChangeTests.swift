import BlockCore
import QCOW2Engine
import QCOW2Format
import TestSupport
import TestTools
import Testing

/// Bitmaps that come, go and change while the image is in use.
@Suite struct BitmapChangeTests {
  struct Shape: Sendable, CustomTestStringConvertible {
    var clusterBits = 9
    var size = 2 << 20 | 3 * 512
    /// Bytes of extensions before that of bitmaps; all must lie in the first sector.
    var extensionBytes = 0
    var hasBitmap = false
    var hasSnapshot = false
    var isRestless = true

    var testDescription: String {
      "\(1 << clusterBits) B clusters, \(extensionBytes) bytes of extensions"
        + (hasBitmap ? ", a bitmap" : "") + (hasSnapshot ? ", a snapshot" : "")
    }

    var builder: ImageBuilder {
      var builder = ImageBuilder()
      builder.clusterBits = clusterBits
      builder.size = size
      builder.hasSnapshot = hasSnapshot
      let clusters = (size + (1 << clusterBits) - 1) >> clusterBits
      for cluster in 0..<min(40, clusters) { builder.mappings[cluster] = .data }
      if extensionBytes > 0 {
        builder.extensions =
          bigEndianBytes(UInt32(0x1234)) + bigEndianBytes(UInt32(extensionBytes - 8))
          + [UInt8](repeating: 7, count: extensionBytes - 8)
      }
      if hasBitmap {
        var old = BitmapSpec("old", granularityBits: 10, entries: [0: .cluster([1, 3])])
        old.flags = 0
        builder.bitmaps = [old]
      }
      return builder
    }

    func bench(schedule: UInt64?) -> Bench {
      let bench = Bench(builder, schedule: schedule)
      bench.options.workers = 2
      bench.options.slotsPerWorker = 3
      bench.options.dirtyAgeMilliseconds = isRestless ? 0 : 1_000_000
      bench.options.bitmapIntentBytes = 8192
      bench.options.bitmapQuietMilliseconds = isRestless ? 0 : 1_000_000
      return bench
    }

    func workload(_ operations: Int) -> WorkloadOptions {
      var options = WorkloadOptions()
      options.operations = operations
      options.workers = 2
      options.depth = 3
      options.regions = [0..<48, 300..<340, (size / 512 - 30)..<(size / 512)]
      options.maximumLength = 10
      options.weights = [5, 60, 6, 8, 0, 0, 0]
      options.maintainsEvery = 2
      return options
    }
  }

  static let shapes = [
    Shape(), Shape(clusterBits: 12, extensionBytes: 320, hasBitmap: true),
    Shape(clusterBits: 12, extensionBytes: 344), Shape(clusterBits: 16, hasSnapshot: true),
    Shape(clusterBits: 12, extensionBytes: 200, hasBitmap: true, isRestless: false),
    Shape(clusterBits: 9, hasBitmap: true),
  ]

  @Test(
    "Every crash state has the old bitmaps or the new ones, and they miss no write",
    arguments: shapes)
  func everyCrashState(shape: Shape) throws {
    let seed = testSeed("bitmap changes")
    for round in 0..<UInt64(testSetting("QUBLK_POWER_CUT_ROUNDS", default: 2)) {
      let bench = shape.bench(schedule: seed &+ round)
      let history = BitmapHistory(bench.clock, seed: seed &+ round)
      try bench.host.run {
        let image = try await bench.open()
        let workload = Workload(
          image: image, file: bench.file, model: bench.model, options: shape.workload(60),
          seed: seed &+ round)
        await withTaskGroup(of: Void.self) { group in
          group.addTask { await workload.run() }
          group.addTask { await history.run(12, on: image) }
        }
        #expect(workload.problems.isEmpty, "\(workload.problems)")
        if round % 2 == 0 { try await image.close() }
      }
      let crashes = CrashEnumerator(
        original: bench.original, events: bench.recording.events, seed: seed)
      var problem: String?
      crashes.visit(perCut: 2) { state in
        let verifier = ImageVerifier(state.bytes)
        problem =
          verifier.check().errors.first ?? history.missing(verifier, bench.model, at: state.time)
        if let found = problem { problem = "\(state.description): \(found)" }
        return problem == nil
      }
      #expect(problem == nil, "seed \(seed &+ round): \(problem ?? ""), \(history.steps)")
      if round % 2 == 0 { #expect(bench.problems() == [], "seed \(seed &+ round)") }
      print(
        "bitmap changes: \(crashes.count) crash states, "
          + "\(history.steps.count { !$0.failed }) of \(history.steps.count) changes, "
          + shape.testDescription)
    }
  }

  @Test("One host error leaves the old bitmaps or the new ones", arguments: [shapes[0], shapes[1]])
  func oneHostError(shape: Shape) throws {
    let seed = testSeed("bitmap change faults")
    let total = try run(shape, nil, seed)
    #expect(total > 50)
    for number in stride(from: 1, through: total, by: 2) {
      try run(shape, Fault(number: number, errno: .io, takesEffect: number % 4 == 1), seed)
    }
    for number in stride(from: 1, through: total, by: 5) {
      try run(shape, Fault(.write, number: number, errno: .noSpace, isPermanent: true), seed)
    }
  }

  @discardableResult
  private func run(_ shape: Shape, _ fault: Fault?, _ seed: UInt64) throws -> Int {
    let bench = shape.bench(schedule: nil)
    bench.allow(fault)
    let history = BitmapHistory(bench.clock, seed: seed)
    let total = Box(0)
    try bench.host.run {
      let image = try await bench.open()
      bench.faulty.fault = fault
      var options = shape.workload(8)
      options.allow(fault)
      let changes: [BitmapChange] = [
        .add("a", granularity: 512), .add("b", granularity: 4096),
        .merge(into: "b", from: .own("a")),
        .disable("a"), .enable("a"), .clear("b"), .remove("a"),
      ]
      for (number, change) in changes.enumerated() {
        await history.make(change, on: image)
        let workload = Workload(
          image: image, file: bench.file, model: bench.model, options: options,
          seed: seed &+ UInt64(number))
        workload.toleratesFailures = fault != nil
        await workload.run()
        #expect(workload.problems.isEmpty, "\(workload.problems)")
      }
      total.value = bench.faulty.counts[nil, default: 0]
      bench.faulty.fault = nil
      if bench.faulty.failures.contains(.sync) { return }
      // Whatever failed, it works now.
      #expect(await history.make(.add("new", granularity: nil), on: image) == nil)
      #expect(await history.make(.clear("new"), on: image) == nil)
      try await image.close()
    }
    let verifier = ImageVerifier(bench.bytes)
    let title = "\(String(describing: fault)): \(history.steps)"
    let report = verifier.check()
    #expect(report.errors == [], "\(title)")
    if fault == nil { #expect(report.leaks == 0) }
    if bench.faulty.failures.contains(.sync) { return total.value }
    #expect(
      history.missing(verifier, bench.model, at: bench.clock.tick()) == nil, "\(title)")
    return total.value
  }

  // MARK: Single situations

  private func with(
    _ shape: Shape,
    _ body: @escaping @Sendable (Image, MiniWorker) async throws -> Void
  ) throws -> ImageVerifier {
    let bench = shape.bench(schedule: nil)
    try bench.host.run {
      let image = try await bench.open()
      try await body(image, MiniWorker(target: image, file: bench.file, worker: 0))
      try await image.close()
    }
    let verifier = ImageVerifier(bench.bytes)
    let report = verifier.check()
    #expect(report.errors == [] && report.leaks == 0, "\(report)")
    return verifier
  }

  private func write(_ sectors: Range<Int>, _ worker: MiniWorker) async {
    let buffer = IOBuffer(count: sectors.count * 512)
    let request = BlockRequest(
      .write, offset: GuestOffset(UInt64(sectors.lowerBound) * 512),
      length: UInt64(sectors.count) * 512, data: buffer.data)
    #expect(await worker.perform(request, slot: 0) == nil)
    withExtendedLifetime(buffer) {}
  }

  private func bits(_ verifier: ImageVerifier, _ name: String) -> [Int]? {
    guard let bitmap = verifier.bitmaps?.first(where: { $0.name == name }) else { return nil }
    return (0..<100).filter { verifier.isSet(bitmap, sector: $0) }
  }

  @Test("A closed image has exactly the bits that it must have", arguments: shapes)
  func exactBits(shape: Shape) throws {
    let verifier = try with(shape) { image, worker in
      try await image.changeBitmaps(.add("a", granularity: 512))
      await write(3..<5, worker)
      try await image.changeBitmaps(.add("b", granularity: 4096))
      await write(20..<21, worker)
      try await image.changeBitmaps(.disable("a"))
      await write(40..<41, worker)
      try await image.changeBitmaps(.add("c", granularity: 512))
      try await image.changeBitmaps(.merge(into: "c", from: .own("a")))
      try await image.changeBitmaps(.enable("a"))
      await write(60..<62, worker)
      try await image.changeBitmaps(.merge(into: "a", from: .own("b")))
      try await image.changeBitmaps(.clear("b"))
      await write(9..<10, worker)
      try await image.changeBitmaps(.add("gone", granularity: 65536))
      try await image.changeBitmaps(.remove("gone"))
    }
    #expect(bits(verifier, "c") == [3, 4, 9, 20, 60, 61])
    #expect(bits(verifier, "b") == Array(8..<16))
    #expect(bits(verifier, "a") == [3, 4, 9] + Array(16..<24) + Array(40..<48) + Array(56..<64))
    #expect(bits(verifier, "gone") == nil)
    if shape.hasBitmap { #expect(bits(verifier, "old") == [2, 3, 6, 7]) }
  }

  @Test func whatCannotBeIsRefusedAndChangesNothing() throws {
    let shape = Shape(clusterBits: 12, hasBitmap: true)
    let bench = shape.bench(schedule: nil)
    try bench.host.run {
      let image = try await bench.open()
      let name = String(repeating: "n", count: 1024)
      let wrong: [(BitmapChange, BitmapRefusal)] = [
        (.add("old", granularity: nil), .exists("old")), (.add("", granularity: nil), .emptyName),
        (.add(name, granularity: nil), .longName), (.add("x", granularity: 256), .granularity),
        (.add("x", granularity: 3000), .granularity),
        (.add("x", granularity: 1 << 32), .granularity),
        (.remove("x"), .unknown("x")), (.clear("x"), .unknown("x")),
        (.merge(into: "old", from: .own("x")), .unknown("x")),
        (.merge(into: "x", from: .own("old")), .unknown("x")),
      ]
      for (change, refusal) in wrong {
        do throws(ImageError) {
          try await image.changeBitmaps(change)
          Issue.record("\(change) is not refused")
        } catch {
          guard case .bitmapRefused(refusal) = error else {
            Issue.record("\(change): \(error)")
            continue
          }
        }
      }
      try await image.close()
    }
    #expect(bench.recording.events.allSatisfy { $0.kind != .write })
  }

  @Test func aHeaderWithoutRoomIsRefusedAndStays() throws {
    let bench = Shape(clusterBits: 12, extensionBytes: 480).bench(schedule: nil)
    try bench.host.run {
      let image = try await bench.open()
      do throws(ImageError) {
        try await image.changeBitmaps(.add("a", granularity: nil))
        Issue.record("the bitmap is not refused")
      } catch {
        guard case .bitmapRefused(.headerFull) = error else {
          Issue.record("\(error)")
          return
        }
      }
      try await image.close()
    }
    let report = ImageVerifier(bench.bytes).check()
    #expect(report.errors == [] && report.leaks == 0, "\(report)")
  }

  @Test func repeatedChangesLeaveNothingBehind() throws {
    let verifier = try with(Shape(clusterBits: 12)) { image, worker in
      try await image.changeBitmaps(.add("a", granularity: 512))
      for number in 0..<300 {
        await write(number % 90..<(number % 90 + 1), worker)
        try await image.changeBitmaps(.clear("a"))
        if number % 10 == 0 { await image.maintain() }
      }
    }
    #expect(bits(verifier, "a") == [])
  }
}
