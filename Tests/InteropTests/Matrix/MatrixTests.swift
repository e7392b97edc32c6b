import Glibc
import Synchronization
import TestTools
import Testing
import Uring

/// Every kind of image that qemu-img makes, written by both implementations, in both orders.
///
/// QUBLK_MATRIX is how many (120; whatever it is, every pair of values occurs). QUBLK_SEED repeats a
/// run; QUBLK_CASE=N runs only its combination N, QUBLK_KEEP leaves its files.
@Suite(.enabled(if: hasQEMU, Qemu.reason))
struct MatrixTests {
  private static let count = getenv("QUBLK_MATRIX").flatMap { Int(String(cString: $0)) } ?? 120

  @Test func onTwinsOfEveryKindOfImageWeAndQemuDoTheSame() async throws {
    var random = SeededGenerator(seed: runSeed ^ 0x3a7)
    let sample = MatrixSample(random.fork(), count: Self.count)
    let trials = sample.cases.map { (chosen: $0, seed: random.next()) }
    let only = getenv("QUBLK_CASE").flatMap { Int(String(cString: $0)) }
    let run = MatrixRun(trials, only: only.map { [$0] } ?? Array(trials.indices))
    await run.run(threads: 2)
    for failure in run.failures { Issue.record("\(failure)") }
    print(
      "InteropTests: matrix: \(run.done) combinations, \(sample.pairs) pairs of values, "
        + "\(run.failures.count) failures, QUBLK_SEED=\(runSeed)")
  }

  @Test func theSampleCoversEachValueAndEachPairThatCanBe() {
    let sample = MatrixSample(SeededGenerator(seed: runSeed), count: 0)
    #expect(sample.cases.allSatisfy { $0.isValid })
    for (dimension, count) in MatrixCase.counts.enumerated() {
      #expect(Set(sample.cases.map { $0.choices[dimension] }).count == count)
    }
    // As many as the two largest dimensions have pairs, at least.
    #expect(sample.cases.count >= 40 && sample.cases.count <= 120)
    #expect(sample.pairs > 500)
  }
}

/// Works off trials on threads of its own, so that other tests keep theirs.
private final class MatrixRun: Sendable {
  private struct State {
    var next = 0
    var done = 0
    var failures: [String] = []
    var running = 0
  }

  private let trials: [(chosen: MatrixCase, seed: UInt64)]
  private let order: [Int]
  private let state = Mutex(State())

  init(_ trials: [(chosen: MatrixCase, seed: UInt64)], only order: [Int]) {
    self.trials = trials
    self.order = order
  }

  var done: Int { state.withLock { $0.done } }
  var failures: [String] { state.withLock { $0.failures } }

  func run(threads: Int) async {
    await withCheckedContinuation { continuation in
      state.withLock { $0.running = threads }
      for number in 0..<threads {
        let work: @Sendable () -> Void = {
          self.work()
          let isLast = self.state.withLock {
            $0.running -= 1
            return $0.running == 0
          }
          if isLast { continuation.resume() }
        }
        do { try WorkerThread(name: "matrix-\(number)", stackBytes: 8 << 20, work).detach() } catch
        {
          work()
        }
      }
    }
  }

  private func work() {
    while let index = take() {
      guard trials.indices.contains(index) else { continue }
      let (chosen, seed) = trials[index]
      do {
        var trial = try MatrixTrial(chosen, SeededGenerator(seed: seed))
        try trial.run()
      } catch {
        let text = "QUBLK_SEED=\(runSeed) QUBLK_CASE=\(index) \(chosen): \(error)"
        state.withLock { $0.failures.append(text) }
      }
      state.withLock { $0.done += 1 }
    }
  }

  /// The next trial; nil when all are taken, or when enough have failed.
  private func take() -> Int? {
    state.withLock { state in
      guard state.next < order.count, state.failures.count < 20 else { return nil }
      state.next += 1
      return order[state.next - 1]
    }
  }
}
