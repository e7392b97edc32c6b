package import BlockCore
package import DiskImages
import Glibc
package import Reports
import Serving
import Uring

/// What a load did, and how long it took.
package struct BenchResult {
  /// From the first request to the last completion; threads and rings are up before.
  package var nanoseconds: UInt64
  /// One element for each queue.
  var queues: [QueueReport]

  /// All queues as one.
  package var total: QueueReport { QueueReport(total: queues) }
}

/// Runs the load of `qublk bench` on an open disk, one thread per queue.
package enum Bench {
  private final class Outcome: @unchecked Sendable {  // why: written before the join, read after
    let counters = QueueCounters()
    var time: ClosedRange<UInt64>?
    var errno: Errno?
  }

  /// Makes the whole load; returns when every request has completed.
  ///
  /// - Throws: The errno of the first thread or ring that could not be made.
  package static func run(
    _ disk: any OpenDisk, options: BenchOptions
  ) throws(Errno) -> BenchResult {
    let outcomes = (0..<options.queues).map { _ in Outcome() }
    let gate = StartGate(count: options.queues)
    var threads: [WorkerThread] = []
    var failure: Errno?
    for (worker, outcome) in outcomes.enumerated() {
      do throws(Errno) {
        threads.append(
          try WorkerThread(name: "bench-\(worker)") {
            serve(disk, options, worker, outcome, gate)
          })
      } catch {
        failure = error
        for _ in worker..<options.queues { gate.giveUp() }
        break
      }
    }
    for thread in threads { thread.join() }
    if let failure = failure ?? outcomes.lazy.compactMap(\.errno).first { throw failure }
    let times = outcomes.compactMap(\.time)
    let start = times.map(\.lowerBound).min() ?? 0
    let end = times.map(\.upperBound).max() ?? 0
    return BenchResult(
      nanoseconds: end - start, queues: outcomes.map { QueueReport($0.counters) })
  }

  private static func serve(
    _ disk: any OpenDisk, _ options: BenchOptions, _ number: Int, _ outcome: Outcome,
    _ gate: StartGate
  ) {
    do throws(Errno) {
      let loop = try BenchWorker.makeLoop(options, outcome.counters)
      defer {
        loop.leaveThread()
        loop.unregisterFiles()
      }
      let worker = try BenchWorker(disk, options, loop, worker: number, outcome.counters)
      if gate.pass() {
        outcome.time = worker.run()
      } else {
        worker.giveUp()
      }
    } catch {
      outcome.errno = error
      gate.giveUp()
    }
  }
}

/// Lets all workers through at once, when the last one is ready.
@safe
final class StartGate: @unchecked Sendable {  // why: `lock` guards all that changes
  private let lock = FutexLock(.leaf)
  private var missing: Int
  private var isBroken = false

  init(count: Int) { missing = count }

  /// Waits for all others; false if one of them gave up.
  func pass() -> Bool {
    lock.withLock { missing -= 1 }
    while lock.withLock({ missing > 0 }) { sched_yield() }
    return lock.withLock { !isBroken }
  }

  /// A worker will never come.
  func giveUp() {
    lock.withLock {
      missing -= 1
      isBroken = true
    }
  }
}
