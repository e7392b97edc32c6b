import BlockCore
import TestSupport
import TestTools
import Testing

/// Cuts the power at every moment of workloads of which one host operation failed.
///
/// What was acknowledged before the failure, and what is acknowledged after it, must be there.
@Suite struct PowerCutFaultTests {
  struct Case: Sendable, CustomTestStringConvertible {
    var scenario: PowerCutTests.Scenario
    var kind: Fault.Kind
    var takesEffect = false

    var testDescription: String {
      "\(kind)\(takesEffect ? " in spite of its effect" : ""): \(scenario.testDescription)"
    }
  }

  static let cases: [Case] = {
    let shapes = [
      ImageShape(clusterBits: 9, contents: .empty),
      ImageShape(clusterBits: 9, contents: .prefilled),
      ImageShape(clusterBits: 9, contents: .snapshot),
      ImageShape(clusterBits: 9, contents: .prefilled, isLazy: true), ImageShape.extended[1],
      ImageShape.compressing[2], ImageShape.nearGrowth,
    ]
    return shapes.enumerated().flatMap { number, shape in
      var scenario = PowerCutTests.Scenario(shape: shape, operations: 40)
      // Many rounds, and frees that mature soon.
      scenario.writesBackAlways = number % 2 == 0
      scenario.cacheSlices = number % 3 == 1 ? 2 : nil
      if shape.isNearGrowth {
        (scenario.operations, scenario.weights) = (60, [0, 80, 0, 6, 6, 4, 4])
      }
      var cases = [Fault.Kind.write, .sync, .zero, .resize].map {
        Case(scenario: scenario, kind: $0)
      }
      cases.append(Case(scenario: scenario, kind: .write, takesEffect: true))
      return cases
    }
  }()

  @Test(
    "Every crash state around a failed operation keeps what was flushed",
    arguments: share(of: cases))
  func everyCrashStateAroundAFailedOperation(_ item: Case) throws {
    let seed = testSeed("power cut and fault")
    let most = try PowerCutTests().record(item.scenario, seed: seed).faulty.counts
    let total = most[item.kind, default: 0]
    let tries = testSetting("QUBLK_POWER_CUT_FAULTS", default: 1)
    let isEverywhere = item.kind == .write || item.kind == .sync
    #expect(total > 0 || !isEverywhere, "the scenario has no operation of this kind")
    var random = SeededGenerator(seed: seed)
    for _ in 0..<min(tries, total) {
      let fault = Fault(
        item.kind, number: 1 + random.below(total), errno: .io, takesEffect: item.takesEffect)
      let bench = try PowerCutTests().record(item.scenario, seed: seed, fault: fault)
      #expect(bench.memory.violations.isEmpty, "\(bench.memory.violations.prefix(3))")
      let states = try CrashCheck(bench, seed: seed, failedTookEffect: item.takesEffect)
        .run(perCut: 1)
      print(
        "power cut: \(states) crash states, \(item.kind) \(fault.number) failed, \(item.testDescription)"
      )
    }
  }
}
