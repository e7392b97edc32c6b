import BlockCore
import Synchronization
package import Uring

/// Runs a job on a thread that has a ring for it alone.
///
/// Everything that the job awaits runs on this thread, and so does background work beside it.
package final class JobLoop: CompletionHandler, @unchecked Sendable {  // why: confined to a thread
  private static let entries = 64

  private let loop: WorkerLoop
  private var tasks = 0

  private init() throws(Errno) {
    loop = try WorkerLoop(entries: Self.entries, completions: 16 * Self.entries)
  }

  /// Runs `body` to its end on the calling thread, which must have no loop yet.
  ///
  /// - Parameter body: The job; it gets the loop, to start more tasks with.
  /// - Returns: What `body` returns.
  /// - Throws: ``JobError/ring(_:)``, or what `body` throws.
  package static func run<T: Sendable>(
    _ body: @escaping @Sendable (JobLoop) async throws(JobError) -> T
  ) throws(JobError) -> T {
    let jobs: JobLoop
    do throws(Errno) { jobs = try JobLoop() } catch { throw .ring(error) }
    // The task below is the first to end the loop, and says how the job ended before.
    let result = Mutex<Result<T, JobError>>(.failure(.cancelled))
    jobs.spawn {
      do throws(JobError) {
        let value = try await body(jobs)
        result.withLock { $0 = .success(value) }
      } catch { result.withLock { $0 = .failure(error) } }
      jobs.loop.endSleeps()
    }
    jobs.loop.run(jobs)
    jobs.loop.leaveThread()
    return try result.withLock { $0 }.get()
  }

  /// Starts a task on the loop's thread; the loop ends when all have.
  ///
  /// Sleeps end when the job does: background work takes that for its end.
  package func spawn(_ body: @escaping @Sendable () async -> Void) {
    tasks += 1
    Task(executorPreference: loop.executor) {
      await body()
      self.tasks -= 1
    }
  }

  /// All completions are operations of the loop: none comes here.
  package func complete(_ userData: UserData, result: Int32) {}

  /// Nothing is left to do.
  package var isFinished: Bool { tasks == 0 && loop.operationsInFlight == 0 }
}
