import Glibc

/// A real thread that runs jobs one by one, as a queue worker's loop does.
@safe package final class ThreadExecutor: TaskExecutor, @unchecked Sendable {  // why: `mutex`
  private let mutex = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
  private let condition = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)
  private var jobs: [(UnownedJob, executor: UnownedTaskExecutor)] = []
  private var isStopping = false
  private var thread = pthread_t()

  package init() {
    pthread_mutex_init(mutex, nil)
    pthread_cond_init(condition, nil)
    let context = Unmanaged.passRetained(self).toOpaque()
    pthread_create(
      &thread, nil,
      { context in
        if let context {
          Unmanaged<ThreadExecutor>.fromOpaque(context).takeRetainedValue().loop()
        }
        return nil
      }, context)
  }

  deinit {
    pthread_mutex_destroy(mutex)
    pthread_cond_destroy(condition)
    mutex.deallocate()
    condition.deallocate()
  }

  package func enqueue(_ job: consuming ExecutorJob) {
    run(UnownedJob(job), for: asUnownedTaskExecutor())
  }

  /// Runs a job of another executor, to which this thread belongs.
  package func run(_ job: UnownedJob, for executor: UnownedTaskExecutor) {
    pthread_mutex_lock(mutex)
    jobs.append((job, executor))
    pthread_cond_signal(condition)
    pthread_mutex_unlock(mutex)
  }

  /// Ends the thread when its queue is empty; all tasks must have finished.
  package func stop() {
    pthread_mutex_lock(mutex)
    isStopping = true
    pthread_cond_signal(condition)
    pthread_mutex_unlock(mutex)
    pthread_join(thread, nil)
  }

  private func loop() {
    while let (job, executor) = next() { job.runSynchronously(on: executor) }
  }

  private func next() -> (UnownedJob, executor: UnownedTaskExecutor)? {
    pthread_mutex_lock(mutex)
    defer { pthread_mutex_unlock(mutex) }
    while jobs.isEmpty {
      if isStopping { return nil }
      pthread_cond_wait(condition, mutex)
    }
    return jobs.removeFirst()
  }
}
