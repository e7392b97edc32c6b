import BlockCore
import CPlatform
import Synchronization
import Uring

/// Runs the same work on several threads of its own, each with several tasks.
enum JobThreads {
  /// The processors that this process may use.
  static var processors: Int { Int(qublk_processors()) }

  /// Runs `work` for each task of each thread, and returns when all have ended.
  ///
  /// With rings, each thread has a ring, on which the transfers of its tasks run beside each other. Where
  /// no ring can be made, and without rings, each thread has one task, whose transfers block it.
  ///
  /// - Parameters:
  ///   - threads: The threads, at least 1; fewer run if the host gives no more.
  ///   - tasks: The tasks of each thread with a ring, at least 1.
  ///   - hasRings: Whether threads have rings.
  ///   - work: Gets the numbers of its thread and of its task.
  /// - Throws: The first error of any task. The others run on until they end by themselves.
  static func run(
    threads: Int, tasks: Int, hasRings: Bool,
    _ work: @escaping @Sendable (_ thread: Int, _ task: Int) async throws(JobError) -> Void
  ) async throws(JobError) {
    let end = CommonEnd()
    var running: [WorkerThread] = []
    for number in 0..<max(threads, 1) {
      do throws(Errno) {
        end.begin()
        running.append(
          try WorkerThread(name: "qublk-job-\(number)", stackBytes: 4 << 20) {
            end.finish(runThread(number, tasks, hasRings, work))
          })
      } catch {
        end.finish(running.isEmpty ? .failure(.thread(error)) : .success(()))
        break
      }
    }
    await end.wait()
    for thread in running { thread.join() }
    try end.result.get()
  }

  private static func runThread(
    _ number: Int, _ tasks: Int, _ hasRings: Bool,
    _ work: @escaping @Sendable (Int, Int) async throws(JobError) -> Void
  ) -> Result<Void, JobError> {
    do throws(JobError) {
      if hasRings {
        do throws(JobError) {
          return .success(
            try JobLoop.run { (_) async throws(JobError) in
              try await runTasks(number, tasks, work)
            })
        } catch {
          guard case .ring = error else { throw error }
        }
      }
      return .success(
        try runBlocking { () async throws(JobError) in try await work(number, 0) })
    } catch { return .failure(error) }
  }

  private static func runTasks(
    _ thread: Int, _ tasks: Int,
    _ work: @escaping @Sendable (Int, Int) async throws(JobError) -> Void
  ) async throws(JobError) {
    let failure = await withTaskGroup(of: JobError?.self) { group in
      for task in 0..<max(tasks, 1) {
        group.addTask {
          do throws(JobError) { try await work(thread, task) } catch { return error }
          return nil
        }
      }
      var first: JobError?
      for await result in group { first = first ?? result }
      return first
    }
    if let failure { throw failure }
  }
}

/// Where the threads of one run meet.
private final class CommonEnd: Sendable {
  @safe private struct State {
    var running = 1  // the one that waits
    var failure: JobError?
    var waiter: UnsafeContinuation<Void, Never>?
  }

  private let state = Mutex(State())

  var result: Result<Void, JobError> {
    state.withLock { $0.failure.map { .failure($0) } ?? .success(()) }
  }

  func begin() { state.withLock { $0.running += 1 } }

  func finish(_ result: Result<Void, JobError>) {
    unsafe state.withLock { (state) -> UnsafeContinuation<Void, Never>? in
      if case .failure(let error) = result, state.failure == nil {
        state.failure = error
      }
      state.running -= 1
      return unsafe state.running == 0 ? state.waiter : nil
    }?.resume()
  }

  /// Returns when all threads have finished; call once.
  func wait() async {
    unsafe await withUnsafeContinuation { continuation in
      let isOver = state.withLock { (state) -> Bool in
        state.running -= 1
        unsafe state.waiter = unsafe continuation
        return state.running == 0
      }
      if isOver { unsafe continuation.resume() }
    }
  }
}
