import BlockCore
import QCOW2Engine
import TestSupport
import TestTools
import Testing

/// Cuts the power at every moment of workloads on images with persistent bitmaps [SNAP-7, ORD-12].
@Suite struct BitmapPowerCutTests {
  @Test(
    "Every crash state has valid bitmaps that miss no change", arguments: share(of: BitmapShape.all)
  )
  func everyCrashStateHasValidBitmaps(shape: BitmapShape) throws {
    let seed = testSeed("bitmap power cut")
    for round in 0..<UInt64(testSetting("QUBLK_POWER_CUT_ROUNDS", default: 1)) {
      let bench = shape.bench(schedule: seed &+ round)
      try bench.host.run {
        let image = try await bench.open()
        let workload = Workload(
          image: image, file: bench.file, model: bench.model,
          options: shape.workload(operations: 60), seed: seed &+ round)
        await workload.run()
        #expect(workload.problems.isEmpty, "\(workload.problems)")
        // With the close, all that brings back the exact bits is recorded, too.
        if round % 2 == 0 { try await image.close() }
      }
      check(bench, shape, seed &+ round)
      if round == 0 {
        let states = try CrashCheck(bench, seed: seed).run(perCut: 1)
        print("bitmap power cut: \(states) crash states, \(shape.testDescription)")
      }
    }
  }

  private func check(_ bench: Bench, _ shape: BitmapShape, _ seed: UInt64) {
    let crashes = CrashEnumerator(
      original: bench.original, events: bench.recording.events, seed: seed)
    let check = BitmapCheck(shape.names, bench)
    let touched = bench.model.touched
    crashes.visit(perCut: 3) { state in
      guard let problem = check.missing(in: state.bytes, touched: touched) else { return true }
      Issue.record("seed \(seed): \(state.description): \(problem)")
      return false
    }
  }
}

/// The same workload on images with bitmaps, each time with another host operation failing.
@Suite struct BitmapFaultTests {
  static let shapes = [BitmapShape.small, BitmapShape.all[4]]

  @Test("One host error fails requests cleanly, and no bitmap misses a change", arguments: shapes)
  func oneHostError(shape: BitmapShape) throws {
    try each(shape, of: nil) { Fault(number: $0, errno: .io) }
    try each(shape, of: nil, from: 2, stride: 3) {
      Fault(number: $0, errno: .io, takesEffect: true)
    }
  }

  @Test("A full host file system costs no bitmap a change", arguments: shapes)
  func aFullHost(shape: BitmapShape) throws {
    for kind in [Fault.Kind.write, .resize] {
      try each(shape, of: kind, stride: 2) {
        Fault(kind, number: $0, errno: .noSpace, isPermanent: true)
      }
    }
  }

  private func each(
    _ shape: BitmapShape, of kind: Fault.Kind?, from first: Int = 1, stride step: Int = 1,
    _ fault: (Int) -> Fault
  ) throws {
    let seed = testSeed("bitmap fault")
    let clean = try run(shape, nil, seed)
    #expect(clean.problem == nil, "without a fault: \(clean.problem ?? "")")
    let total = clean.bench.faulty.counts[kind, default: 0]
    for number in stride(from: first, through: total, by: step) {
      let result = try run(shape, fault(number), seed)
      #expect(
        result.problem == nil,
        """
        \(result.bench.faulty.failures) number \(number) of \(total), seed \(seed): \
        \(result.problem ?? "")
        """)
      if result.problem != nil { return }
    }
  }

  private func run(
    _ shape: BitmapShape, _ fault: Fault?, _ seed: UInt64
  ) throws -> (bench: Bench, problem: String?) {
    let bench = shape.bench(schedule: seed)
    bench.allow(fault)
    let found = Box<String?>(nil)
    try bench.host.run {
      let image = try await bench.open()
      bench.faulty.fault = fault
      var options = shape.workload(operations: 40)
      options.allow(fault)
      let workload = Workload(
        image: image, file: bench.file, model: bench.model, options: options, seed: seed)
      workload.toleratesFailures = fault != nil
      await workload.run()
      found.value = workload.problems.first
      if fault != nil { bench.faulty.fault = nil }
      if bench.faulty.failures.contains(.sync) { return }
      let again = Workload(
        image: image, file: bench.file, model: bench.model,
        options: shape.workload(operations: 15), seed: seed &+ 1)
      await again.run()
      found.value = found.value ?? again.problems.first
      try await image.close()
    }
    let check = BitmapCheck(shape.names, bench)
    let verifier = ImageVerifier(bench.bytes)
    let report = verifier.check()
    var problem = found.value ?? report.errors.first
    if fault == nil && report.leaks > 0 { problem = problem ?? "\(report.leaks) leaks" }
    if !bench.faulty.failures.contains(.sync) {
      problem = problem ?? bench.contentProblems(verifier).first
    }
    return (bench, problem ?? check.missing(in: bench.bytes, touched: bench.model.touched))
  }
}
