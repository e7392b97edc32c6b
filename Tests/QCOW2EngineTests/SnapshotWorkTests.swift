import BlockCore
import QCOW2Format
import TestSupport
import TestTools
import Testing

@testable import QCOW2Engine

/// Snapshots taken, deleted and applied, as a whole: beside a guest, cut off, and failing.
@Suite struct SnapshotWorkTests {
  struct Shape: Sendable, CustomTestStringConvertible {
    var clusterBits: Int
    var isExtended = false
    var refcountOrder = 4
    var version = 3
    var isLazy = false
    var isCompressed = true
    var testDescription: String {
      "\(clusterBits) \(isExtended) \(refcountOrder) v\(version)\(isLazy ? " lazy" : "")"
    }
  }

  static let shapes = [
    Shape(clusterBits: 9), Shape(clusterBits: 12, refcountOrder: 2), Shape(clusterBits: 13),
    Shape(clusterBits: 14, isExtended: true),
    Shape(clusterBits: 9, version: 2),
    Shape(clusterBits: 9, isLazy: true),
  ]

  func bench(_ shape: Shape, schedule: UInt64?) -> Bench { shape.bench(schedule: schedule) }

  /// Runs `body` beside a guest that changes what it likes, then closes and checks the image.
  func beside(
    _ bench: Bench, _ seed: UInt64, keep: Box<SharingBench?> = Box(nil), closes: Bool = true,
    _ body: @escaping @Sendable (SharingBench) async throws -> Void
  ) throws -> [String] {
    let found = Box<[String]>([])
    try bench.host.run {
      let guest = try await SharingBench(bench)
      keep.value = guest
      let isOver = Box(false)
      let failure = Box<(any Error)?>(nil)
      await withTaskGroup(of: Void.self) { group in
        group.addTask { await SharingTests.work(guest, seed, until: isOver) }
        do {
          await SharingTests.wait(guest, 15)
          try await body(guest)
        } catch { failure.value = error }
        isOver.value = true
      }
      if let failure = failure.value { throw failure }
      if closes { found.value = try await guest.finish() }
    }
    return found.value
  }

  @Test(
    "A snapshot taken while the guest writes is the disk at its cut; deleted, nothing is left",
    arguments: shapes, [false, true])
  func takenWhileServing(shape: Shape, deletes: Bool) throws {
    for run in 0..<testSetting("QUBLK_SHARING_RUNS", default: 2) {
      let seed = testSeed("snapshot work") &+ UInt64(run)
      let bench = bench(shape, schedule: seed)
      let problems = try beside(bench, seed) { guest in
        try await guest.create()
        await SharingTests.wait(guest, 40)
        if deletes {
          try await guest.delete()
          await SharingTests.wait(guest, 40)
          try await guest.create("two")
          await SharingTests.wait(guest, 20)
        }
      }
      #expect(problems.isEmpty, "run \(run): \(problems)")
      #expect(bench.bytes.be32(60) == 1)
      if shape.version >= 3 { #expect(bench.bytes.be64(72) & 1 == 0, "still dirty") }
    }
  }

  @Test("A snapshot that is not wanted any more leaves nothing behind", arguments: shapes)
  func cancelled(shape: Shape) throws {
    // The larger shapes have one table.
    for after in 1...(shape.clusterBits == 9 ? 2 : 1) {
      let seed = testSeed("cancelled snapshot") &+ UInt64(after)
      let bench = bench(shape, schedule: seed)
      let problems = try beside(bench, seed) { guest in
        let created = try await guest.create { $0 < UInt64(after) }
        #expect(created == nil)
        guest.forgetSnapshot()
        await SharingTests.wait(guest, 20)
      }
      #expect(problems.isEmpty, "\(problems)")
      #expect(bench.bytes.be32(60) == 0)
      if shape.version >= 3 { #expect(bench.bytes.be64(72) & 1 == 0, "still dirty") }
    }
  }

  @Test(
    "A power cut finds the snapshot whole or not at all, and refcounts that can be mended",
    arguments: shapes, [false, true])
  func aPowerCut(shape: Shape, deletes: Bool) throws {
    let seed = testSeed("snapshot cut")
    let bench = bench(shape, schedule: seed)
    let guest = Box<SharingBench?>(nil)
    _ = try beside(bench, seed, keep: guest, closes: false) { guest in
      try await guest.create()
      await SharingTests.wait(guest, 5)
      if deletes { try await guest.delete() }
    }
    let crashes = CrashEnumerator(
      originals: bench.originals, events: bench.recording.events, seed: seed)
    var (withSnapshot, dirty) = (0, 0)
    crashes.visit(perCut: testSetting("QUBLK_SHARING_STATES", default: 0)) { state in
      if state.bytes.be32(60) > 0 { withSnapshot += 1 }
      if shape.version >= 3, state.bytes.be64(72) & 1 != 0 { dirty += 1 }
      guard let problem = guest.value?.strictCrashProblem(state.bytes) else { return true }
      Issue.record("\(problem) — \(state.description)")
      return false
    }
    print("snapshot: \(crashes.count) crash states, \(withSnapshot) with it, \(dirty) dirty")
    #expect(withSnapshot > 0 && withSnapshot < crashes.count)
    #expect((dirty > 0) == (shape.version >= 3))
  }

  /// Decision 0022: what a crash leaves of COPIED in version 2 harms nobody who goes on without a repair.
  @Test("A version 2 image that was cut off is used on without harm", arguments: [false, true])
  func usedOnInVersion2(deletes: Bool) throws {
    let seed = testSeed("version 2 used on")
    let shape = Shape(clusterBits: 9, version: 2)
    let bench = bench(shape, schedule: seed)
    _ = try beside(bench, seed, closes: false) { guest in
      try await guest.create()
      await SharingTests.wait(guest, 5)
      if deletes { try await guest.delete() }
    }
    let crashes = CrashEnumerator(
      originals: bench.originals, events: bench.recording.events, seed: seed)
    var (tried, doubtful) = (0, 0)
    crashes.visit(perCut: 1) { state in
      let verifier = bench.verifier([state.bytes])
      let hasDoubt = verifier.check().errors.contains { $0.contains(": entry ") }
      if hasDoubt { doubtful += 1 }
      guard hasDoubt, doubtful % 8 == 1 else { return true }
      tried += 1
      guard let problem = Self.useOn(state.bytes.copy(), shape) else { return true }
      Issue.record("\(problem) — \(state.description)")
      return false
    }
    print(
      "version 2: \(crashes.count) crash states, \(doubtful) with other flags, \(tried) tried")
    #expect(tried > 0)
  }

  /// Takes a snapshot of an image, writes over its disk, and compares what both have.
  private static func useOn(_ bytes: ImageBytes, _ shape: Shape) -> String? {
    let other = shape.bench(schedule: nil)
    other.bytes.assign(bytes)
    let found = Box<String?>(nil)
    do {
      try other.host.run {
        let image = try await other.open()
        let before = try await contents(image)
        _ = try await image.createSnapshot(named: "after") { _, _ in true }
        try await fill(image, 0x5a)
        if try await contents(image) != [UInt8](repeating: 0x5a, count: before.count) {
          return found.value = "the disk has not got what was written"
        }
        let snapshots = try await image.snapshots()
        _ = try await image.applySnapshot(.name("after")) { _, _ in true }
        if try await contents(image) != before {
          return found.value = "the snapshot has lost what the disk had"
        }
        for snapshot in snapshots {
          _ = try await image.deleteSnapshot(.id(snapshot.id)) { _, _ in true }
        }
        try await fill(image, 0x33)
        try await image.close()
        let errors = other.verifier([other.bytes]).check().errors
        found.value = errors.first { !$0.contains(": entry ") }
      }
    } catch { return "\(error)" }
    return found.value
  }

  private static func contents(_ image: Image) async throws -> [UInt8] {
    let buffer = IOBuffer(count: Int(image.size))
    let request = BlockRequest(
      .read, offset: GuestOffset(0), length: image.size, data: buffer.data)
    let result = await image.serve(request, at: RequestSlot(worker: 0, number: 0))
    if let errno = result.errno { throw errno }
    defer { withExtendedLifetime(buffer) {} }
    return Array(UnsafeRawBufferPointer(start: buffer.base, count: buffer.count))
  }

  private static func fill(_ image: Image, _ byte: UInt8) async throws {
    let buffer = IOBuffer(count: Int(image.size))
    buffer.base.initializeMemory(as: UInt8.self, repeating: byte, count: buffer.count)
    let request = BlockRequest(
      .write, offset: GuestOffset(0), length: image.size, data: buffer.data)
    let result = await image.serve(request, at: RequestSlot(worker: 0, number: 0))
    withExtendedLifetime(buffer) {}
    if let errno = result.errno { throw errno }
  }

  @Test("Apply leaves the old disk or the snapshot's, whenever the power goes", arguments: shapes)
  func applyAndPowerCut(shape: Shape) throws {
    let seed = testSeed("apply cut")
    let bench = bench(shape, schedule: seed)
    let guest = Box<SharingBench?>(nil)
    let disks = Box<[[UInt32]]>([])
    let span = Box(UInt64(0)...UInt64.max)
    try bench.host.run {
      let own = try await SharingBench(bench)
      guest.value = own
      let then = own.disk
      try await own.create()
      let sectors = 1 << (shape.clusterBits - 9)
      for cluster in [1, 2, 9, 30, 100, 131] {
        await own.change((cluster * sectors)..<(cluster * sectors + 1))
      }
      await own.change((12 * sectors)..<(14 * sectors), discards: true)
      disks.value = [own.disk, then]
      try await own.image.flush()
      let begin = bench.clock.now
      try await own.apply()
      span.value = begin...bench.clock.now
      own.becomes(then)
      await own.change(sectors..<(sectors + 1))
      let problems = try await own.finish()
      #expect(problems.isEmpty, "\(problems)")
    }
    let crashes = CrashEnumerator(
      originals: bench.originals, events: bench.recording.events, seed: seed)
    var seen: Set<Int> = []
    crashes.visit(perCut: 1) { state in
      if !span.value.contains(state.time) { return true }
      if let problem = guest.value?.strictCrashProblem(state.bytes) {
        Issue.record("\(problem) — \(state.description)")
        return false
      }
      guard let disk = guest.value?.disk(state.bytes, among: disks.value) else {
        Issue.record("neither disk — \(state.description)")
        return false
      }
      seen.insert(disk)
      return true
    }
    #expect(seen == [0, 1])
  }

  @Test("A host that fails anywhere leaves at worst leaks", arguments: shapes.prefix(3))
  func failures(shape: Shape) throws {
    let seed = testSeed("failing snapshots")
    var failed = 0
    for number in stride(from: 0, to: 120, by: 5) {
      let bench = bench(shape, schedule: nil)
      let guest = Box<SharingBench?>(nil)
      let hasFailed = Box(false)
      try bench.host.run {
        let own = try await SharingBench(bench)
        guest.value = own
        await own.change(0..<1)
        try await own.image.flush()
        bench.faulty.fault = Fault(number: number + 1, errno: .io)
        do {
          try await own.create()
          try await own.apply()
          try await own.delete()
        } catch { hasFailed.value = true }
        bench.faulty.fault = nil
        try? await own.image.close()
      }
      if hasFailed.value { failed += 1 }
      let problem = guest.value?.strictCrashProblem(bench.bytes.copy())
      #expect(problem == nil, "operation \(number) from \(seed)")
    }
    #expect(failed > 3)
  }

  @Test("A refcount that can go no higher refuses a snapshot, and nothing is lost")
  func fullRefcounts() throws {
    for (order, most) in [(0, 0), (1, 2)] {
      let bench = bench(
        Shape(clusterBits: 9, refcountOrder: order, isCompressed: false), schedule: nil)
      try bench.host.run {
        let guest = try await SharingBench(bench)
        for number in 0..<most { try await guest.create("\(number)") }
        for apply in [false, true] where most > 0 || !apply {
          do {
            if apply { try await guest.apply("0") } else { try await guest.create() }
            Issue.record("order \(order): more than \(most) snapshots")
          } catch let error as ImageError {
            guard case .tooManyReferences(_, let found) = error else { throw error }
            #expect(found == 1 << (1 << order) - 1)
          }
        }
        await guest.change(0..<1)
        guest.forgetSnapshot()
        let problems = try await guest.finish()
        #expect(problems.isEmpty, "\(problems)")
      }
      #expect(bench.bytes.be32(60) == most)
      #expect(bench.bytes.be64(72) == 0)
    }
  }
}

extension SnapshotWorkTests.Shape {
  /// An image of this shape with some of everything.
  func bench(schedule: UInt64?) -> Bench {
    var builder = ImageBuilder()
    builder.clusterBits = clusterBits
    builder.refcountOrder = refcountOrder
    builder.version = version
    builder.features.isExtended = isExtended
    if isLazy { builder.compatible = 1 }
    builder.size = 160 << clusterBits
    for cluster in 0..<48 where cluster % 5 != 4 { builder.mappings[cluster] = .data }
    for cluster in 130..<134 { builder.mappings[cluster] = .data }
    if isCompressed {
      builder.mappings[48] = .compressed
      builder.mappings[49] = .compressed
    }
    if version >= 3 { builder.mappings[50] = .zero }
    if version >= 3 && !isExtended { builder.mappings[51] = .allocatedZero }
    let bench = Bench(builder, schedule: schedule)
    bench.options.workers = 2
    bench.options.slotsPerWorker = 4
    bench.options.dirtyAgeMilliseconds = 0
    return bench
  }
}
