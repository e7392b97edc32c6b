import BlockCore
import DiskImages
import Glibc
import Synchronization
import Uring

/// Runs the load of `qublk bench` on an open image, one thread per queue.
enum Bench {
  private final class Outcome: @unchecked Sendable {  // why: written before the join, read after
    var result: BenchResult?
    var errno: Errno?
  }

  static func run(
    _ disk: any OpenDisk, options: BenchOptions
  ) throws(Errno) -> BenchResult {
    let outcomes = (0..<options.queues).map { _ in Outcome() }
    let started = now()
    var threads: [WorkerThread] = []
    for worker in 0..<options.queues {
      let share = options.count / options.queues
      let outcome = outcomes[worker]
      threads.append(
        try WorkerThread(name: "bench-\(worker)") {
          do throws(Errno) {
            outcome.result = try BenchWorker(
              disk, options: options, worker: worker, share: share
            ).run()
          } catch { outcome.errno = error }
        })
    }
    for thread in threads { thread.join() }
    var total = BenchResult()
    total.seconds = now() - started
    for outcome in outcomes {
      if let errno = outcome.errno { throw errno }
      guard let result = outcome.result else { throw .io }
      total.requests += result.requests
      total.hits += result.hits
      total.flushes += result.flushes
      total.failures += result.failures
    }
    return total
  }

  private static func now() -> Double {
    var time = timespec()
    unsafe clock_gettime(CLOCK_MONOTONIC, &time)
    return Double(time.tv_sec) + Double(time.tv_nsec) / 1e9
  }
}
