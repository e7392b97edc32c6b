import QCOW2Engine
import TestSupport
import TestTools
import Testing

#if DEBUG
  /// Two requests at the same time, in each order of their accesses to what they share.
  ///
  /// A plan stops a thread at some of its yield points, so that the other one runs there. For each pair the plan
  /// without a stop is tried, and some with one or two, which the seed chooses. QUBLK_ONE_STOP=100000 tries all of
  /// those with one, QUBLK_TWO_STOPS=100000 all with two.
  @Suite(.serialized) struct InterleavingTests {
    typealias Step = TurnScenario.Step

    /// Eight sectors in a cluster, eight clusters: data, data, none, none, zeros with and without a cluster, data, none.
    static func builder(_ bits: Int = 12) -> ImageBuilder {
      var builder = ImageBuilder()
      builder.clusterBits = bits
      builder.size = 8 << bits
      builder.mappings = [0: .data, 1: .data, 4: .zero, 5: .allocatedZero, 6: .data]
      return builder
    }

    static func contents() -> [TurnScenario.Contents] {
      var shared = builder()
      shared.hasSnapshot = true
      var lazy = builder()
      lazy.compatible = 1
      var compressed = builder()
      compressed.mappings[0] = .compressed
      compressed.mappings[1] = .compressed
      var bitmap = builder()
      bitmap.bitmaps = [BitmapSpec("b", granularityBits: 12)]
      var tables = builder(9)
      tables.size = 128 << 9
      tables.mappings = [0: .data, 1: .data, 64: .data, 65: .data]
      return [
        .init(name: "own", builder: builder()),
        .init(name: "cold", builder: builder(), isWarm: false),
        .init(name: "shared", builder: shared),
        .init(name: "lazy", builder: lazy),
        .init(name: "compressed", builder: compressed),
        .init(name: "bitmap", builder: bitmap),
        .init(name: "one slice", builder: tables, cacheBytes: 512),
      ]
    }

    /// The steps of either thread, on a disk whose clusters have so many sectors: mostly around two of them.
    static func steps(_ contents: TurnScenario.Contents) -> [[Step]] {
      let perCluster = (1 << contents.builder.clusterBits) / 512
      let far = contents.cacheBytes == nil ? 2 * perCluster : 64
      func cluster(_ number: Int) -> Range<Int> { number * perCluster..<(number + 1) * perCluster }
      let data = cluster(0)
      let none = far + (far == 64 ? 2 : 0)..<far + (far == 64 ? 2 : 0) + perCluster
      var steps: [[Step]] = [
        [.write(data.lowerBound..<data.lowerBound + 1)], [.write(data)],
        [.write(none.lowerBound..<none.lowerBound + 1), .flush], [.write(none)],
        [.read(data)], [.read(none)], [.discard(data)], [.zero(none)],
        [.discard(data), .flush, .maintain, .write(none)], [.flush], [.maintain], [.quiesce],
        [.grow],
        [.takeSnapshot],
      ]
      if perCluster > 1 {
        steps.append([.write(none.upperBound - 2..<none.upperBound), .flush])
        steps.append([.write(data.upperBound - 1..<none.lowerBound + 1)])
      }
      if contents.builder.hasSnapshot { steps.append([.deleteSnapshot]) }
      return steps
    }

    static func scenarios() -> [TurnScenario] {
      contents().flatMap { contents in
        let steps = steps(contents)
        return steps.indices.flatMap { first in
          // There is one snapshot to delete.
          steps[first...].filter { [$0, steps[first]] != [[.deleteSnapshot], [.deleteSnapshot]] }
            .map { TurnScenario(contents: contents, steps: [steps[first], $0]) }
        }
      }
    }

    @Test("Two requests leave what one after the other could have left, however they meet")
    func howeverTheyMeet() async {
      let seed = testSeed("interleavings")
      let threads = TwoThreads()
      defer { threads.stop() }
      var runs = 0
      let all = share(of: Self.scenarios())
      let widths = [
        testSetting("QUBLK_ONE_STOP", default: 20), testSetting("QUBLK_TWO_STOPS", default: 1),
      ]
      for scenario in all {
        var explorer = Explorer(TurnRun(scenario, on: threads), seed: seed, widths: widths)
        if let problem = await explorer.explore() {
          Issue.record("\(scenario.description): \(problem)")
          break
        }
        runs += explorer.runs
      }
      print("interleavings: \(runs) runs of \(all.count) scenarios")
    }
  }

  /// Tries plans of a scenario: without a stop, with one, and with two.
  private struct Explorer {
    private let run: TurnRun
    private var random: SeededGenerator
    /// The most plans with a stop more that are tried for one without it, by its number of stops.
    private let widths: [Int]
    private(set) var runs = 0

    init(_ run: TurnRun, seed: UInt64, widths: [Int]) {
      self.run = run
      self.widths = widths
      random = SeededGenerator(seed: seed)
    }

    /// - Returns: The first problem, with its plan.
    mutating func explore() async -> String? {
      for first in 0..<2 {
        if let problem = await explore(TwoThreads.Plan(first: first)) { return problem }
      }
      return nil
    }

    private mutating func explore(_ plan: TwoThreads.Plan) async -> String? {
      let (points, problem) = await run.run(plan)
      runs += 1
      if let problem { return "\(plan): \(problem)" }
      let next = (plan.stops.last ?? 0) + 1
      guard next <= points, plan.stops.count < widths.count else { return nil }
      for stop in choose(from: next...points, width: widths[plan.stops.count]) {
        var longer = plan
        longer.stops.append(stop)
        if let problem = await explore(longer) { return problem }
      }
      return nil
    }

    private mutating func choose(from stops: ClosedRange<Int>, width: Int) -> [Int] {
      if stops.count <= width { return Array(stops) }
      return (0..<width).map { _ in stops.lowerBound + random.below(stops.count) }
    }
  }
#endif
