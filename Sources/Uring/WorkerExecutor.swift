import BlockCore
import CPlatform
import Glibc
import Synchronization

/// Runs Swift jobs on one worker's thread, between two turns of its ring.
///
/// Jobs enqueued on the worker's own thread go to a plain queue; from elsewhere to a locked queue
/// that the loop empties each turn, with a write to the eventfd only if the loop may be asleep.
/// After the loop has ended, jobs are kept and never run: end the tasks first.
@safe
public final class WorkerExecutor: TaskExecutor, @unchecked Sendable {
  // why: `owner` is set before the loop runs, `local` is touched by its thread only, `remote`
  // under `lock`.

  /// Readable when a job from another thread waits; the loop keeps a read armed on it.
  let wakeDescriptor: Int32
  /// The thread context of the thread that runs the jobs.
  private var owner: UnsafeMutableRawPointer?
  private var local = JobQueue()
  private let lock = FutexLock(.leaf)
  private var remote = JobQueue()
  private let remoteCount = Atomic<Int>(0)
  private let mayBeAsleep = Atomic<Bool>(false)

  /// Makes an executor that belongs to no thread yet.
  ///
  /// - Throws: The errno of eventfd(2).
  init() throws(Errno) {
    wakeDescriptor = qublk_eventfd()
    if wakeDescriptor < 0 { throw Errno(-wakeDescriptor) }
  }

  deinit { if wakeDescriptor >= 0 { close(wakeDescriptor) } }

  /// Makes the calling thread, whose context is `context`, the one that runs the jobs.
  func bind(to context: UnsafeMutableRawPointer) { unsafe owner = unsafe context }

  public func enqueue(_ job: consuming ExecutorJob) {
    let job = UnownedJob(job)
    if unsafe qublk_thread_context() == owner {
      local.push(job)
      return
    }
    lock.withLock {
      remote.push(job)
      remoteCount.store(remote.count, ordering: .sequentiallyConsistent)
    }
    if mayBeAsleep.exchange(false, ordering: .sequentiallyConsistent) { wake() }
  }

  /// Makes the loop take another turn, whatever it does now; callable from every thread.
  public func wake() {
    var one: UInt64 = 1
    _ = unsafe write(wakeDescriptor, &one, 8)
  }

  // MARK: The owner's side

  /// Runs the jobs that wait now; what they enqueue in turn waits for the next call.
  @usableFromInline func runReadyJobs() {
    if remoteCount.load(ordering: .acquiring) > 0 { takeRemoteJobs() }
    var budget = local.count
    while budget > 0, let job = local.pop() {
      run(job)
      budget -= 1
    }
  }

  private func run(_ job: UnownedJob) {
    unsafe job.runSynchronously(on: asUnownedTaskExecutor())
  }

  private func takeRemoteJobs() {
    lock.withLock {
      while let job = remote.pop() { local.push(job) }
      remoteCount.store(0, ordering: .relaxed)
    }
  }

  /// Whether a job waits; of those from other threads it may learn a moment late.
  var hasJobs: Bool { local.count > 0 || remoteCount.load(ordering: .relaxed) > 0 }

  /// Announces that the loop is about to sleep; false if a job waits and it must not.
  ///
  /// The announcement and the poster's increment are both sequentially consistent: one of the two
  /// threads sees the other.
  func prepareToSleep() -> Bool {
    if local.count > 0 { return false }
    mayBeAsleep.store(true, ordering: .sequentiallyConsistent)
    if remoteCount.load(ordering: .sequentiallyConsistent) == 0 { return true }
    mayBeAsleep.store(false, ordering: .relaxed)
    return false
  }

  func didWake() { mayBeAsleep.store(false, ordering: .relaxed) }
}
