import BlockCore
import CPlatform
import Synchronization
import Serving
import Uring

/// A queue's worker as the control thread sees it: a thread and how far it has come.
@safe
final class QueueThread: @unchecked Sendable {
  // why: `state` orders the fields: written before it changes, read after the change was seen.

  private enum State {
    static let starting: UInt32 = 0
    static let serving: UInt32 = 1
    static let failed: UInt32 = 2
    static let ended: UInt32 = 3
  }

  let queue: Int
  private let state: UnsafeMutablePointer<UInt32>
  private let lock = FutexLock(.leaf)
  private var thread: WorkerThread?
  private var failure: (stage: WorkerStage, error: Errno)?
  private var collected: [DeviceWarning] = []
  /// Kept beyond the worker's end: a task that ends the last worker may still be waking it.
  private var executor: WorkerExecutor?
  private let abandoned = AbandonFlag()
  private let files = FileChanges()
  private let onEnd: @Sendable () -> Void

  /// Starts the worker's thread.
  ///
  /// `onEnd` is called on that thread as the very last thing, after a failure too.
  init(_ setup: QueueSetup, onEnd: @escaping @Sendable () -> Void) throws(UblkError) {
    queue = setup.queue
    self.onEnd = onEnd
    unsafe state = .allocate(capacity: 1)
    unsafe state.initialize(to: State.starting)
    do throws(Errno) {
      thread = try WorkerThread(name: "qublk-q\(queue)") { [self] in run(setup) }
    } catch { throw .worker(queue: queue, .thread, error) }
  }

  deinit { unsafe state.deallocate() }

  // MARK: The control thread's side

  /// Waits until the worker serves.
  func waitUntilServing(milliseconds: Int) throws(UblkError) {
    let end = MonotonicClock.milliseconds() + UInt64(milliseconds)
    while true {
      let now = MonotonicClock.milliseconds()
      let (seen, failed) = lock.withLock { unsafe (state.pointee, failure) }
      if let failed { throw .worker(queue: queue, failed.stage, failed.error) }
      if seen == State.serving { return }
      if seen == State.ended { throw .worker(queue: queue, .fetch, .noDevice) }
      if now >= end { throw .worker(queue: queue, .readiness, .timedOut) }
      _ = unsafe qublk_futex_wait_for(state, seen, end - now)
    }
  }

  /// Why the worker has not come as far as serving; nil while that is not known.
  var startFailure: UblkError? {
    lock.withLock { failure }.map { .worker(queue: queue, $0.stage, $0.error) }
  }

  /// Makes the worker leave whatever the driver still holds; for devices without /dev/ublkbN only.
  func abandon() {
    abandoned.set()
    lock.withLock { executor }?.wake()
  }

  /// Has the worker's ring know a host file by a number, beside the requests that it serves.
  ///
  /// - Parameters:
  ///   - number: What transfers call the file.
  ///   - descriptor: The file; nil takes what has the number away.
  /// - Throws: `noDevice` if the worker does not serve, else the errno of the kernel; the number
  ///   stands for what it stood for.
  func setFile(_ number: UInt8, _ descriptor: Int32?) async throws(Errno) {
    guard let executor = lock.withLock({ executor }) else { throw .noDevice }
    try await files.make(
      FileChanges.Change(slot: Int(QueueWorker.firstFileSlot) + Int(number), descriptor),
      on: executor)
  }

  /// Waits for the thread's end.
  func join() {
    thread?.join()
    thread = nil
  }

  var warnings: [DeviceWarning] { lock.withLock { collected } }

  // MARK: The worker's side

  private func run(_ setup: QueueSetup) {
    prepareThread(setup)
    serveQueue(setup)
    files.end()
    set(State.ended)
    onEnd()
  }

  private func serveQueue(_ setup: QueueSetup) {
    var stage = WorkerStage.memory
    do throws(Errno) {
      let worker = try QueueWorker(setup, abandoned, &stage)
      worker.fetchAll()
      if let error = worker.fetchFailure {
        report(.fetch, error)
      } else {
        lock.withLock { executor = worker.loop.executor }
        set(State.serving)
        worker.serve()
      }
      worker.release()
    } catch {
      WorkerLoop.current?.leaveThread()
      report(stage, error)
    }
  }

  private func prepareThread(_ setup: QueueSetup) {
    if let mask = setup.affinity {
      let result = unsafe qublk_set_affinity(mask, mask.count)
      if result < 0 { warn(.affinity(queue: queue, Errno(-result))) }
    }
    if let error = Self.becomeIOFlusher() { warn(.ioFlusher(queue: queue, error)) }
  }

  /// Marks the thread so that memory reclaim does not wait for it, and checks that the kernel took it.
  private static func becomeIOFlusher() -> Errno? {
    let result = qublk_set_io_flusher(1)
    if result < 0 { return Errno(-result) }
    var flags: UInt32 = 0
    let read = unsafe qublk_thread_flags(&flags)
    if read < 0 { return Errno(-read) }
    let wanted = UInt32(QUBLK_IO_FLUSHER_FLAGS)
    return flags & wanted == wanted ? nil : .notSupported
  }

  private func warn(_ warning: DeviceWarning) { lock.withLock { collected.append(warning) } }

  private func report(_ stage: WorkerStage, _ error: Errno) {
    lock.withLock { failure = (stage, error) }
    set(State.failed)
  }

  private func set(_ value: UInt32) {
    lock.withLock { unsafe state.pointee = value }
    unsafe qublk_futex_wake(state, Int32.max)
  }
}

/// Tells a worker to leave; set once, by the control thread.
final class AbandonFlag: Sendable {
  private let flag = Atomic<Bool>(false)

  func set() { flag.store(true, ordering: .sequentiallyConsistent) }
  var isSet: Bool { flag.load(ordering: .relaxed) }
}
