import BlockCore
import CPlatform
import Synchronization

/// Runs one asynchronous function to completion on the calling thread.
///
/// Everything the function awaits runs here too, except what has an executor of its own; the
/// thread sleeps while nothing can run. Uses no thread of the global pool. Not for the threads of
/// ``WorkerLoop``, which must not sleep.
public func runBlocking<T, E: Error>(
  _ body: @escaping () async throws(E) -> T
) throws(E) -> T {
  unsafe precondition(qublk_thread_context() == nil, "runBlocking on a worker's thread")
  let executor = BlockingExecutor()
  let call = BlockingCall(body, executor)
  // why unchecked: the task runs on this thread only, and the thread does nothing else meanwhile.
  Task(executorPreference: executor) { await call.run() }
  executor.runUntilFinished()
  guard let result = call.result else { fatalError("runBlocking ended without a result") }
  return try result.get()
}

/// The function, and where its result goes.
private final class BlockingCall<T, E: Error>: @unchecked Sendable {
  // why: used by one thread, which waits for it.
  let body: () async throws(E) -> T
  let executor: BlockingExecutor
  var result: Result<T, E>?

  init(_ body: @escaping () async throws(E) -> T, _ executor: BlockingExecutor) {
    self.body = body
    self.executor = executor
  }

  func run() async {
    do throws(E) { result = .success(try await body()) } catch { result = .failure(error) }
    executor.finish()
  }
}

/// A job queue that one thread empties, sleeping on a futex while it is empty.
@safe
private final class BlockingExecutor: TaskExecutor, @unchecked Sendable {
  // why: `jobs` and `isFinished` are guarded by `lock`.
  private let lock = FutexLock(.leaf)
  private var jobs = JobQueue()
  private var isFinished = false
  /// Counts enqueues; the futex word.
  private let enqueued: UnsafeMutablePointer<UInt32>

  init() {
    unsafe enqueued = .allocate(capacity: 1)
    unsafe enqueued.initialize(to: 0)
  }

  deinit { unsafe enqueued.deallocate() }

  func enqueue(_ job: consuming ExecutorJob) {
    let job = UnownedJob(job)
    lock.withLock { jobs.push(job) }
    signal()
  }

  func finish() {
    lock.withLock { isFinished = true }
    signal()
  }

  private func signal() {
    lock.withLock { unsafe enqueued.pointee &+= 1 }  // a change counter; wraps by design
    unsafe qublk_futex_wake(enqueued, 1)
  }

  func runUntilFinished() {
    while true {
      let (job, done, seen) = lock.withLock { unsafe (jobs.pop(), isFinished, enqueued.pointee) }
      if let job {
        unsafe job.runSynchronously(on: asUnownedTaskExecutor())
      } else if done {
        return
      } else {
        unsafe qublk_futex_wait(enqueued, seen)
      }
    }
  }
}
