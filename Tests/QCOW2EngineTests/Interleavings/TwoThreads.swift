import BlockCore
import Glibc

#if DEBUG
  /// Two threads of which one runs at a time: a plan says at which of its yield points a thread is stopped.
  ///
  /// The same plan gives the same run. A thread also stops where it can not go on: at a lock that the other one
  /// has, and when its task waits for the other's.
  // why unchecked: only the thread whose turn it is touches it
  @safe final class TwoThreads: Turns, @unchecked Sendable {
    /// Where threads are stopped though they could go on, by the number of the point since the start.
    struct Plan: Hashable, Sendable, CustomStringConvertible {
      /// The thread that begins: 0 or 1.
      var first = 0
      /// In rising order.
      var stops: [Int] = []

      var description: String { "thread \(first) first, stopped at \(stops)" }
    }

    /// A thread has jobs, or is in one.
    private var canRun = [false, false]
    private var turn = 0
    private var plan = Plan()
    private var nextStop = 0
    /// How many points have been passed by threads while both could run.
    private(set) var points = 0
    private var waitsInVain = 0
    private let gates = UnsafeMutablePointer<sem_t>.allocate(capacity: 3)
    private(set) var threads: [TurnThread] = []

    override init() {
      super.init()
      for index in 0..<3 { sem_init(gates + index, 0, 0) }
      threads = [TurnThread(0, self), TurnThread(1, self)]
    }

    /// Ends both threads.
    func stop() {
      for thread in threads { thread.stop() }
      for index in 0..<3 { sem_destroy(gates + index) }
      gates.deallocate()
      threads = []
    }

    /// Runs a piece of work on each thread by the plan.
    ///
    /// - Returns: false if both were stuck before both had ended; the threads are of no use then.
    func run(_ plan: Plan, _ work: [@Sendable () async -> Void]) -> Bool {
      self.plan = plan
      (nextStop, points, waitsInVain) = (0, 0, 0)
      let ended = Ended()
      for (index, work) in work.enumerated() {
        Task(executorPreference: threads[index]) {
          await work()
          ended.count += 1
        }
      }
      turn = plan.first
      sem_post(gates + turn)
      wait(for: 2)
      return ended.count == work.count
    }

    private final class Ended: @unchecked Sendable {  // why: as for the turns
      var count = 0
    }

    private func wait(for gate: Int) { while sem_wait(gates + gate) != 0 {} }

    // MARK: Called by the threads

    override func pass(_ point: YieldPoint) {
      waitsInVain = 0
      guard canRun[0] && canRun[1] else { return }
      points += 1
      guard nextStop < plan.stops.count, plan.stops[nextStop] == points else { return }
      nextStop += 1
      giveTurnAway()
    }

    override func waitForLock() {
      waitsInVain += 1
      // The other one must be able to give the lock back. If it is not, the process is lost: locks are held.
      precondition(waitsInVain < 10 && canRun[1 - turn], "both threads wait for locks")
      giveTurnAway()
    }

    private func giveTurnAway() {
      let me = turn
      turn = 1 - me
      sem_post(gates + turn)
      wait(for: me)
    }

    /// A thread has a job; called before the start of a run, or by the thread whose turn it is.
    func hasJob(_ thread: Int) { canRun[thread] = true }

    /// A thread has no job left: it waits for the next, of this run or a later one.
    func hasNoJob(_ thread: Int) {
      canRun[thread] = false
      waitsInVain = 0
      if canRun[1 - thread] {
        turn = 1 - thread
        sem_post(gates + turn)
      } else {
        sem_post(gates + 2)
      }
    }

    /// Waits for the thread's turn.
    func waitForTurn(_ thread: Int) { wait(for: thread) }

    /// Lets a thread see that it is stopped.
    func wake(_ thread: Int) { sem_post(gates + thread) }
  }

  /// One of the two: runs the jobs that it is given, in its turn.
  final class TurnThread: TaskExecutor, @unchecked Sendable {  // why: `lock`
    private let number: Int
    private unowned let turns: TwoThreads
    private let lock = PlainLock()
    private var jobs: [UnownedJob] = []
    private var isStopping = false
    private var thread = pthread_t()

    init(_ number: Int, _ turns: TwoThreads) {
      self.number = number
      self.turns = turns
      let context = Unmanaged.passRetained(self).toOpaque()
      pthread_create(
        &thread, nil,
        { context in
          if let context { Unmanaged<TurnThread>.fromOpaque(context).takeRetainedValue().loop() }
          return nil
        }, context)
    }

    func enqueue(_ job: consuming ExecutorJob) {
      let job = UnownedJob(job)
      lock.withLock {
        jobs.append(job)
        turns.hasJob(number)
      }
    }

    func stop() {
      lock.withLock { isStopping = true }
      turns.wake(number)
      pthread_join(thread, nil)
    }

    private func loop() {
      turns.enterThread()
      turns.waitForTurn(number)
      while true {
        if let job = lock.withLock({ jobs.isEmpty ? nil : jobs.removeFirst() }) {
          job.runSynchronously(on: asUnownedTaskExecutor())
        } else if lock.withLock({ isStopping }) {
          return
        } else {
          turns.hasNoJob(number)
          turns.waitForTurn(number)
        }
      }
    }
  }

  /// A lock without yield points.
  @safe final class PlainLock: @unchecked Sendable {  // why: it is one
    private let mutex = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)

    init() { pthread_mutex_init(mutex, nil) }

    deinit {
      pthread_mutex_destroy(mutex)
      mutex.deallocate()
    }

    func withLock<R>(_ body: () -> R) -> R {
      pthread_mutex_lock(mutex)
      defer { pthread_mutex_unlock(mutex) }
      return body()
    }
  }
#endif
