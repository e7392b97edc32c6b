import BlockCore
import TestSupport
import TestTools
import Testing

@testable import QCOW2Engine

/// A host that fails under a snapshot job: what is left of the image, and of the device that goes on.
extension SnapshotWorkTests {
  struct HostFault: Sendable, CustomTestStringConvertible {
    var kind: Fault.Kind?
    var errno: Errno
    var isPermanent = false
    var takesEffect = false
    var testDescription: String {
      "\(kind.map { "\($0)" } ?? "any") \(errno)\(isPermanent ? " on" : "")\(takesEffect ? " done" : "")"
    }

    func at(_ number: Int) -> Fault {
      Fault(
        kind, number: number, errno: errno, isPermanent: isPermanent, takesEffect: takesEffect)
    }
  }

  static let hostFaults = [
    HostFault(errno: .io), HostFault(errno: .io, takesEffect: true),
    HostFault(kind: .write, errno: .noSpace, isPermanent: true),
    HostFault(kind: .allocate, errno: .noSpace, isPermanent: true),
    HostFault(kind: .sync, errno: .io),
  ]

  @Test(
    "When the host fails under a snapshot, the device goes on, and the image is whole",
    arguments: hostFaults, [false, true])
  func aFaultUnderASnapshot(fault: HostFault, deletes: Bool) throws {
    for shape in [Self.shapes[0], Self.shapes[4], Self.shapes[5]] {
      var (number, failed, lasting) = (1, 0, 0)
      while true {
        let outcome = try run(shape, fault.at(number), deletes: deletes)
        let note = "\(shape.testDescription), operation \(number)"
        #expect(outcome.problem == nil, "\(note): \(outcome.problem ?? "")")
        if !outcome.hasMet { break }
        if outcome.hasFailed { failed += 1 }
        if outcome.isDirty { lasting += 1 }
        if outcome.problem != nil { return }
        number += number < 12 ? 1 : 5
      }
      print("\(shape.testDescription): \(failed) failures, \(lasting) images left dirty")
      #expect(failed > 0 || fault.kind == .allocate)
    }
  }

  private struct Outcome {
    /// The operation came so far.
    var hasMet = false
    var hasFailed = false
    /// After the device has ended.
    var isDirty = false
    var problem: String?
  }

  private func run(_ shape: Shape, _ fault: Fault, deletes: Bool) throws -> Outcome {
    let bench = bench(shape, schedule: nil)
    let outcome = Box(Outcome())
    let guest = Box<SharingBench?>(nil)
    try bench.host.run {
      let own = try await SharingBench(bench)
      guest.value = own
      if deletes { try await own.create() }
      for sector in [0, 3, 40] { await own.change(sector..<(sector + 1)) }
      bench.faulty.fault = fault
      do { if deletes { try await own.delete() } else { try await own.create() } } catch {
        outcome.value.hasFailed = true
      }
      outcome.value.hasMet = !bench.faulty.failures.isEmpty
      bench.faulty.fault = nil
      if !own.image.health.hasLostSync { try await Self.goOn(own) }
      try? await own.image.close()
    }
    guard let own = guest.value else { return outcome.value }
    let bytes = bench.bytes.copy()
    outcome.value.isDirty = shape.version >= 3 && bytes.be64(72) & 1 != 0
    outcome.value.problem = own.strictCrashProblem(bytes)
    if !own.image.health.hasLostSync, own.disk(bytes, among: [own.disk]) == nil {
      outcome.value.problem = "the disk is another"
    }
    return outcome.value
  }

  /// The device after the fault: it serves requests, and takes and deletes snapshots.
  private static func goOn(_ guest: SharingBench) async throws {
    for sector in [0, 1, 5, 41, 90] { await guest.change(sector..<(sector + 1)) }
    let image = guest.image
    _ = try await image.createSnapshot(named: "two") { _, _ in true }
    await guest.change(2..<4)
    _ = try await image.deleteSnapshot(.name("two")) { _, _ in true }
    await guest.change(8..<16, discards: true)
  }

  // MARK: The length of the file

  @Test("Snapshots and bitmaps that come and go again and again do not make the file longer")
  func theFileStaysShort() throws {
    let bench = bench(Self.shapes[1], schedule: nil)
    try bench.host.run {
      let guest = try await SharingBench(bench)
      var lengths: [Int] = []
      for round in 0..<60 {
        _ = try await guest.image.createSnapshot(named: "s") { _, _ in true }
        try await guest.image.changeBitmaps(.add("b", granularity: nil))
        await guest.change(round..<(round + 3))
        try await guest.image.changeBitmaps(.clear("b"))
        try await guest.image.changeBitmaps(.remove("b"))
        _ = try await guest.image.deleteSnapshot(.name("s")) { _, _ in true }
        try await guest.image.flush()
        await guest.image.maintain()
        lengths.append(bench.bytes.length)
      }
      #expect(lengths[59] - lengths[9] <= 8 << 12, "\(lengths)")
      let problems = try await guest.finish()
      #expect(problems.isEmpty, "\(problems)")
    }
  }

  // MARK: Lazy refcounts

  @Test(
    "Lazy refcounts are turned on and off beside a guest; a power cut finds them right, or DIRTY")
  func lazySwitch() throws {
    let seed = testSeed("lazy switch")
    let bench = bench(Self.shapes[5], schedule: seed)
    let guest = Box<SharingBench?>(nil)
    let problems = try beside(bench, seed, keep: guest) { guest in
      for round in 0..<2 {
        try await guest.image.setLazyRefcounts(false)
        #expect(bench.bytes.be64(72) & 1 == 0 && bench.bytes.be64(80) & 1 == 0)
        await SharingTests.wait(guest, 20)
        #expect(bench.bytes.be64(72) & 1 == 0, "rounds set it no more")
        if round == 0 {
          try await guest.create()
          #expect(bench.bytes.be64(72) & 1 == 0, "still dirty")
        }
        try await guest.image.setLazyRefcounts(true)
        #expect(bench.bytes.be64(80) & 1 == 1)
        await SharingTests.wait(guest, 20)
      }
    }
    #expect(problems.isEmpty, "\(problems)")
    let crashes = CrashEnumerator(
      originals: bench.originals, events: bench.recording.events, seed: seed)
    var dirty = 0
    crashes.visit(perCut: 0) { state in
      if state.bytes.be64(72) & 1 != 0 { dirty += 1 }
      guard let problem = guest.value?.strictCrashProblem(state.bytes) else { return true }
      Issue.record("\(problem) — \(state.description)")
      return false
    }
    print("lazy switch: \(crashes.count) crash states, \(dirty) dirty")
    #expect(dirty > 0 && dirty < crashes.count)
  }

  @Test("A host that fails under the switch leaves the old setting, and an image that is whole")
  func lazySwitchFails() throws {
    for number in 1... {
      let bench = bench(Self.shapes[5], schedule: nil)
      let hasMet = Box(false)
      let guest = Box<SharingBench?>(nil)
      try bench.host.run {
        let own = try await SharingBench(bench)
        guest.value = own
        for sector in [0, 3, 40] { await own.change(sector..<(sector + 1)) }
        try await own.image.flush()
        await own.change(90..<91)
        bench.faulty.fault = Fault(number: number, errno: .io)
        do { try await own.image.setLazyRefcounts(false) } catch {
          // A header that may be durable or not is the end of all writing.
          #expect(own.image.hasLazyRefcounts || own.image.health.hasLostSync)
          #expect(own.image.flusher.lazy.isOn)
        }
        hasMet.value = !bench.faulty.failures.isEmpty
        bench.faulty.fault = nil
        if !own.image.health.hasLostSync { await own.change(1..<2) }
        try? await own.image.close()
      }
      let problem = guest.value?.strictCrashProblem(bench.bytes.copy())
      #expect(problem == nil, "operation \(number)")
      if !hasMet.value { break }
    }
  }
}
