import BlockCore
import Glibc
import JSON
import TestTools
import Testing

@testable import Bench
@testable import Reports

@Suite struct BenchTests {
  private func options(_ change: (inout BenchOptions) -> Void = { _ in }) -> BenchOptions {
    var options = BenchOptions()
    options.count = 1000
    change(&options)
    return options
  }

  private func steps(
    _ options: BenchOptions, size: UInt64 = 1 << 20, queue: Int = 0, atMost: Int = 100_000
  ) -> [BenchLoad.Step] {
    var load = BenchLoad(options, size: size, queue: queue)
    var steps: [BenchLoad.Step] = []
    while steps.count < atMost {
      let step = load.next()
      if step == .end { break }
      steps.append(step)
    }
    return steps
  }

  private func offsets(_ steps: [BenchLoad.Step]) -> [UInt64] {
    steps.compactMap { if case .transfer(_, let offset) = $0 { offset } else { nil } }
  }

  private func reads(_ steps: some Sequence<BenchLoad.Step>) -> Int {
    steps.count { if case .transfer(.read, _) = $0 { true } else { false } }
  }

  @Test func sequentialRequestsFollowTheStepAndWrapAtTheEndOfTheDisk() {
    let all = steps(
      options {
        $0.count = 6
        $0.stepSize = 300 << 10
        $0.offset = 4096
      })
    // Positions go on modulo the size; one from which a request would cross the end starts anew at
    // 0.
    let step: UInt64 = 300 << 10
    let disk: UInt64 = 1 << 20
    let places: [UInt64] = [0, step, 2 * step, 3 * step, 4 * step - disk, 5 * step - disk]
    #expect(offsets(all) == places.map { $0 + 4096 })
    let last = steps(
      options {
        $0.count = 3; $0.bufferSize = 8192; $0.offset = disk - 12288
      })
    #expect(offsets(last) == [disk - 12288, disk - 8192, 0])
  }

  @Test(arguments: [1, 2, 3, 7, 64])
  func queuesShareTheRequestsWithoutLosingOne(_ queues: Int) {
    let load = options {
      $0.count = 100
      $0.queues = queues
    }
    let all = (0..<queues).flatMap { steps(load, queue: $0) }
    #expect(offsets(all) == (0..<100).map { UInt64($0) * 4096 })
  }

  @Test(arguments: [0, 1, 50, 70, 99, 100])
  func theMixIsExactInEachHundred(_ percent: Int) {
    let all = steps(options { $0.readPercent = percent })
    #expect(all.count == 1000)
    for start in stride(from: 0, to: 1000, by: 100) {
      #expect(reads(all[start..<start + 100]) == percent)
    }
  }

  @Test func aMixIsNotInOrder() {
    let all = steps(options { $0.readPercent = 50 })
    #expect(reads(all[..<50]) != 50 && reads(all[..<50]) != 0)
  }

  @Test func randomRequestsCoverTheDiskAndStayInIt() {
    let size: UInt64 = 64 * 4096 + 512
    let all = offsets(
      steps(
        options {
          $0.count = 5000
          $0.isRandom = true
          $0.offset = 512
          $0.seed = 7
        }, size: size))
    #expect(all.count == 5000)
    #expect(all.allSatisfy { $0 % 4096 == 512 && $0 + 4096 <= size })
    #expect(Set(all).count == 64)
  }

  @Test func aSeedAndAQueueMakeTheSequence() {
    let first = options { $0.isRandom = true }
    let second = options {
      $0.isRandom = true; $0.seed = 2
    }
    #expect(steps(first) == steps(first))
    #expect(steps(first) != steps(second))
    var shared = first
    shared.queues = 2
    #expect(steps(shared, queue: 0) != steps(shared, queue: 1))
  }

  @Test func flushesComeWhenAMultipleOfTheIntervalIsLeft() {
    let all = steps(
      options {
        $0.count = 250; $0.readPercent = 0; $0.flushInterval = 100
      })
    let places = all.enumerated().filter { $0.element == .flush }.map(\.offset)
    #expect(places == [50, 151, 252])
    let unlimited = steps(
      options {
        $0.count = nil; $0.readPercent = 0; $0.flushInterval = 64
      }, atMost: 200)
    #expect(unlimited.enumerated().filter { $0.element == .flush }.map(\.offset) == [64, 129, 194])
  }

  @Test func aMixIsOneNumberOrTwo() {
    #expect(BenchMix("70")?.readPercent == 70)
    #expect(BenchMix("70:30")?.readPercent == 70)
    #expect(BenchMix("0:100")?.readPercent == 0)
    for text in ["", ":", "70:", ":30", "70:31", "101", "-1", "+5", "70:30:0", "7O", "٣"] {
      #expect(BenchMix(text) == nil, "\(text)")
    }
  }

  @Test(arguments: [
    (["-d", "0"], "-d is 0, expected 1 to 4096"),
    (["--queues", "65"], "--queues is 65, expected 1 to 64"),
    (["-s", "100"], "-s is 100, expected a multiple of 512 from 512 to 1073741824"),
    (["-o", "1"], "-o is 1, expected a multiple of 512 below 8E"),
    (["-o", "8E"], "-o is 9223372036854775808, expected a multiple of 512 below 8E"),
    (["--pattern", "256"], "--pattern is 256, expected 0 to 255"),
    (["-c", "5", "--seconds", "1"], "-c and --seconds exclude each other"),
    (["-w", "--mix", "50"], "-w and --mix exclude each other"),
    (["--flush-interval", "64"], "--flush-interval is only available in write tests"),
    (["-w", "--flush-interval", "63"], "Flush interval can't be smaller than depth"),
    (
      ["-s", "1G"],
      "-s 1073741824 times -d 64 times --queues 1: more than 4 GiB of memory"
    ),
    (
      ["-s", "48M", "--mix", "50"],
      "-s 50331648 times -d 64 times --queues 1, for reads and for writes: more than 4 GiB of memory"
    ),
    (["--mix", "5O"], "The value '5O' is invalid for '--mix <mix>'"),
    (["-s", "1Q"], "The value '1Q' is invalid for '--buffer-size <buffer-size>'"),
  ])
  func aWrongUseEndsWith1AndSaysWhy(_ arguments: [String], _ message: String) throws {
    let outcome = try Subprocess(qublkPath(), ["bench", "x"] + arguments).finish()
    #expect(outcome.status == 1)
    #expect(outcome.output == "")
    #expect(outcome.errors.split(separator: "\n").first.map(String.init) == "qublk: " + message)
  }

  @Test(.enabled(if: hasQEMU, "needs qemu-img"))
  func theReportCountsWhatWasAskedFor() throws {
    let directory = try TemporaryDirectory()
    let image = try directory.image("a.qcow2")
    let outcome = try qublk(
      "bench", "-c", "1000", "-d", "8", "--random", "--mix", "30:70", "--queues", "3",
      "--flush-interval", "50", "--json", image)
    #expect(outcome.status == 0, "\(outcome.errors)")
    // The parser reads integers only.
    let lines = outcome.output.split(separator: "\n").filter {
      !["seconds\"", "_per_second\"", "hit_ratio\""].contains(where: $0.contains)
    }
    let report = try #require(JSONParser.parse(lines.joined(separator: "\n")))
    #expect(report["requests"]?.integer == 1000)
    #expect(report["bytes"]?.integer == 4_096_000)
    // 334, 333 and 333 requests: multiples of 50 from 300 down to 0 are left.
    #expect(report["flushes"]?.integer == 21)
    #expect(report["failures"]?.integer == 0)
    #expect(report["in_flight"]?.integer == 0)
    let operations = try #require(report["operations"])
    // In blocks of 100: 3 × 90, and what the parts of 34, 33 and 33 got.
    let reads = try #require(operations["read"]?["requests"]?.integer)
    #expect((270...330).contains(reads))
    #expect(operations["write"]?["requests"]?.integer == 1000 - reads)
    let hits = try #require(report["hits"]?.integer)
    let misses = try #require(report["misses"]?.integer)
    #expect(hits + misses == 1000)
    guard case .array(let queues) = report["queues"] else {
      Issue.record("no queues")
      return
    }
    let counts: [Int64] = queues.compactMap { $0["requests"]?.integer }
    #expect(counts == [341, 340, 340])
    for name in ["read", "write", "flush"] {
      let latency = try #require(operations[name]?["latency_ns"])
      let values = ["min", "p50", "p90", "p99", "p99_9", "max"].compactMap { latency[$0]?.integer }
      #expect(values.count == 6)
      #expect(values == values.sorted())
    }
    #expect(try run("qemu-img", "check", image).status == 0)
  }

  @Test(.enabled(if: hasQEMU, "needs qemu-img"))
  func writesHaveThePattern() throws {
    let directory = try TemporaryDirectory()
    let image = try directory.image("a.qcow2")
    let outcome = try qublk(
      "bench", "-w", "--pattern", "90", "-c", "16", "-s", "64k", "-S", "128k", "-o", "64k", image)
    #expect(outcome.status == 0)
    let lines = outcome.output.split(separator: "\n")
    #expect(
      lines.first
        == "Sending 16 write requests, 65536 bytes each, 64 in parallel (starting at offset 65536, step size 131072)"
    )
    #expect(lines.last?.hasPrefix("Run completed in 0.") == true)
    let check = try run(
      "qemu-io", "-c", "read -P 90 64k 64k", "-c", "read -P 0 0 64k", "-c", "read -P 90 1984k 64k",
      image)
    #expect(!check.output.contains("failed"))
    #expect(check.status == 0)
  }

  @Test(.enabled(if: hasQEMU, "needs qemu-img"))
  func aLoadForATimeEndsByItself() throws {
    let directory = try TemporaryDirectory()
    let image = try directory.image("a.qcow2")
    let outcome = try qublk("bench", "--seconds", "0.2", "--random", "-q", image)
    #expect(outcome.status == 0)
    #expect(outcome.output == "")
    #expect(outcome.seconds >= 0.2)
  }

  @Test func numbersWithAFractionAreRounded() {
    #expect(JSONValue.decimalText(1.2345, digits: 3) == "1.235")
    #expect(JSONValue.decimalText(0.0004, digits: 3) == "0.000")
    #expect(JSONValue.decimalText(-0.5, digits: 1) == "-0.5")
    #expect(JSONValue.decimalText(99.96, digits: 1) == "100.0")
    #expect(JSONValue.decimalText(.nan, digits: 2) == "0.00")
    #expect(JSONValue.decimalText(1e300, digits: 0) == "9000000000000000000")
    #expect(JSONValue.decimalText(7.5, digits: 0) == "8")
  }
}
