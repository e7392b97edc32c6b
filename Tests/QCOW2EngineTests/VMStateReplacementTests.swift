import BlockCore
import QCOW2Format
import TestSupport
import TestTools
import Testing

@testable import QCOW2Engine

/// VM state that is imported into a snapshot: whole, cut off, failing, and not wanted any more.
@Suite struct VMStateReplacementTests {
  /// A state: bytes that say which one it is and where they are; some clusters are zeros.
  struct State: Sendable {
    let number: UInt8
    let size: UInt64

    func byte(_ offset: UInt64) -> UInt8 {
      if offset / 9000 % 3 == 1 { return 0 }
      return number &+ UInt8(truncatingIfNeeded: offset / 512)
    }

    /// Gives the state, `pieces` pieces of it at most.
    func source(pieces: Int = .max) -> VMStateSource {
      let left = Box(pieces)
      return { buffer, offset in
        left.value -= 1
        guard left.value >= 0, let memory = buffer.memory else { return false }
        for index in 0..<buffer.count {
          memory.storeBytes(
            of: self.byte(offset + UInt64(index)), toByteOffset: index, as: UInt8.self)
        }
        return true
      }
    }
  }

  private static let shapes = SnapshotWorkTests.shapes
  private static let one = State(number: 7, size: 200_001)
  private static let other = State(number: 100, size: 70_000)

  /// What the first snapshot of an image has as VM state: nil if that is none of `states`.
  private static func state(
    _ bytes: ImageBytes, _ bench: Bench, among states: [State]
  ) -> Int? {
    let size = bytes.be64(Int(bytes.be64(64)) + 40)
    let verifier = bench.verifier([bytes])
    let perTable =
      UInt64(1 << (2 * bench.builder.clusterBits - (bench.builder.features.isExtended ? 4 : 3)))
    let start = (UInt64(bench.builder.size) + perTable - 1) / perTable * perTable / 512
    return states.firstIndex { state in
      guard state.size == size else { return false }
      return (0..<(size + 511) / 512).allSatisfy { sector in
        let found = verifier.snapshotSector(Int(start + sector))
        let rest = min(512, size - sector * 512)
        return (0..<rest).allSatisfy { index in
          let byte = found?.load(fromByteOffset: Int(index), as: UInt8.self) ?? 0
          return byte == state.byte(sector * 512 + index)
        }
      }
    }
  }

  @Test(
    "A power cut finds the old VM state or the new one, and the disk as it was", arguments: shapes)
  func aPowerCut(shape: SnapshotWorkTests.Shape) throws {
    let seed = testSeed("VM state cut")
    let bench = shape.bench(schedule: seed)
    let guest = Box<SharingBench?>(nil)
    try bench.host.run {
      let own = try await SharingBench(bench)
      guest.value = own
      try await own.create()
      await own.change(3..<5)
      for state in [Self.one, Self.other, State(number: 0, size: 0)] {
        _ = try await own.image.replaceVMState(
          of: .name("one"), size: state.size, from: state.source())
      }
      await own.change(9..<12)
      let problems = try await own.finish()
      #expect(problems.isEmpty, "\(problems)")
    }
    let states = [State(number: 0, size: 0), Self.one, Self.other]
    let crashes = CrashEnumerator(
      originals: bench.originals, events: bench.recording.events, seed: seed)
    var seen: Set<Int> = []
    crashes.visit(perCut: 1) { crash in
      if crash.bytes.be32(60) == 0 { return true }
      if let problem = guest.value?.strictCrashProblem(crash.bytes) {
        Issue.record("\(problem) — \(crash.description)")
        return false
      }
      guard let found = Self.state(crash.bytes, bench, among: states) else {
        Issue.record("none of the states — \(crash.description)")
        return false
      }
      seen.insert(found)
      return true
    }
    print("VM state: \(crashes.count) crash states")
    #expect(seen == [0, 1, 2])
  }

  @Test("VM state that shares its clusters with the disk goes without harm", arguments: shapes)
  func sharedState(shape: SnapshotWorkTests.Shape) throws {
    let seed = testSeed("shared VM state")
    let bench = shape.bench(schedule: seed)
    let guest = Box<SharingBench?>(nil)
    try bench.host.run {
      let own = try await SharingBench(bench)
      guest.value = own
      // As a program that has died leaves it: behind the disk, and so in the snapshot too.
      let left = IOBuffer(count: 3000)
      left.base.initializeMemory(as: UInt8.self, repeating: 9, count: left.count)
      try await own.image.writeVMState(from: left.data, at: 0)
      try await own.create()
      _ = try await own.image.replaceVMState(
        of: .name("one"), size: Self.other.size, from: Self.other.source())
      let found = IOBuffer(count: 3000)
      try await own.image.readVMState(into: found.data, at: 0)
      #expect(
        UnsafeRawBufferPointer(start: found.base, count: 3000).allSatisfy { $0 == 9 })
      let problems = try await own.finish()
      #expect(problems.isEmpty, "\(problems)")
    }
    #expect(Self.state(bench.bytes, bench, among: [Self.other]) == 0)
    let crashes = CrashEnumerator(
      originals: bench.originals, events: bench.recording.events, seed: seed)
    crashes.visit(perCut: 1) { crash in
      guard let problem = guest.value?.strictCrashProblem(crash.bytes) else { return true }
      Issue.record("\(problem) — \(crash.description)")
      return false
    }
  }

  @Test("State that is not wanted any more leaves nothing behind", arguments: shapes)
  func cancelled(shape: SnapshotWorkTests.Shape) throws {
    let bench = shape.bench(schedule: nil)
    try bench.host.run {
      let own = try await SharingBench(bench)
      try await own.create()
      _ = try await own.image.replaceVMState(
        of: .name("one"), size: Self.one.size, from: Self.one.source())
      let large = State(number: 3, size: 3 << 20)
      let replaced = try await own.image.replaceVMState(
        of: .name("one"), size: large.size, from: large.source(pieces: 2))
      #expect(replaced == nil)
      let problems = try await own.finish()
      #expect(problems.isEmpty, "\(problems)")
    }
    #expect(Self.state(bench.bytes, bench, among: [Self.one]) == 0)
  }

  @Test("A host that fails anywhere leaves the old state or the new one", arguments: shapes)
  func failures(shape: SnapshotWorkTests.Shape) throws {
    var failed = 0
    for number in stride(from: 0, to: 60, by: 3) {
      let bench = shape.bench(schedule: nil)
      let guest = Box<SharingBench?>(nil)
      let hasFailed = Box(false)
      try bench.host.run {
        let own = try await SharingBench(bench)
        guest.value = own
        try await own.create()
        _ = try await own.image.replaceVMState(
          of: .name("one"), size: Self.one.size, from: Self.one.source())
        bench.faulty.fault = Fault(number: number + 1, errno: number % 2 == 0 ? .io : .noSpace)
        do {
          _ = try await own.image.replaceVMState(
            of: .name("one"), size: Self.other.size, from: Self.other.source())
        } catch { hasFailed.value = true }
        bench.faulty.fault = nil
        try? await own.image.close()
      }
      if hasFailed.value { failed += 1 }
      let bytes = bench.bytes.copy()
      let problem = guest.value?.strictCrashProblem(bytes)
      #expect(problem == nil, "operation \(number)")
      #expect(
        Self.state(bytes, bench, among: [Self.one, Self.other]) != nil, "operation \(number)")
    }
    #expect(failed > 3)
  }

  @Test("More state than an L1 table can lead to is refused") func tooLarge() throws {
    let bench = SnapshotWorkTests.Shape(clusterBits: 9).bench(schedule: nil)
    try bench.host.run {
      let own = try await SharingBench(bench)
      try await own.create()
      for size in [UInt64(1) << 40, .max] {
        do {
          _ = try await own.image.replaceVMState(
            of: .name("one"), size: size, from: Self.one.source())
          Issue.record("taken")
        } catch let error as ImageError {
          guard case .vmStateTooLarge(size, _) = error else { throw error }
        }
      }
      let problems = try await own.finish()
      #expect(problems.isEmpty, "\(problems)")
    }
  }
}
