public import BlockCore
import CPlatform
import CUring

/// What a loop hands the completions to that are not its own.
public protocol CompletionHandler: AnyObject {
  /// Called for every completion of kind `fetch` and `transfer`, on the worker's thread.
  func complete(_ userData: UserData, result: Int32)

  /// Called for every completion of the kinds of the batch mode, on the worker's thread.
  func completeBatch(_ userData: UserData, result: Int32, flags: CompletionFlags)

  /// Called once each turn, when its jobs have run: the last chance to queue entries before the kernel
  /// is entered.
  func endTurn()

  /// Asked once each turn, after ``endTurn()``: true ends the loop.
  var isFinished: Bool { get }
}

extension CompletionHandler {
  @inlinable public func completeBatch(
    _ userData: UserData, result: Int32, flags: CompletionFlags
  ) {}
  @inlinable public func endTurn() {}
}

/// One thread, one ring, one loop: submits, waits, hands out completions and runs Swift jobs.
///
/// Made on the thread that runs it; all members except `executor` are for that thread only.
/// A turn runs ready jobs, enters the kernel once for everything queued, and reaps everything.
@safe
public final class WorkerLoop: @unchecked Sendable {
  // why: confined to its thread; other threads touch `executor` only.

  public let ring: Ring
  /// Runs jobs on this thread; pass it as a task's executor preference.
  public let executor: WorkerExecutor
  var slots = OperationSlots()
  private let wakeCounter: UnsafeMutablePointer<UInt64>
  private var registeredFiles: [Int32] = []
  /// /dev/zero as this ring knows it, to fill registered buffers with zeros; nil where none are.
  public var zeroFile: RingFile?
  /// What the loop has done.
  public let counters: LoopCounters
  /// When the kernel last handed out completions, by ``MonotonicClock``.
  @inlinable public var now: UInt64 { unsafe clock.pointee }
  /// Behind a pointer, it is read without a check of exclusive access, of which requests make several.
  @usableFromInline let clock: UnsafeMutablePointer<UInt64>
  /// Whether to look for completions before a sleep, and for how long.
  private let isPolling: Bool
  private var poll: AdaptivePoll
  /// Set by ``endSleeps()``: no sleep lasts any longer.
  var sleepsHaveEnded = false

  /// The loop whose thread this is; nil on every other thread.
  public static var current: WorkerLoop? {
    guard let context = unsafe qublk_thread_context() else { return nil }
    return unsafe Unmanaged<WorkerLoop>.fromOpaque(context).takeUnretainedValue()
  }

  /// Sets up the ring and makes this thread the loop's.
  ///
  /// - Parameters:
  ///   - entries: The submission queue's size.
  ///   - completions: The completion queue's size: at least what can be in flight at once.
  ///   - counters: Where the loop counts what it does.
  ///   - pollLimit: The most nanoseconds for which to look for completions before a sleep; 0 for never.
  /// - Throws: The errno of io_uring_setup(2) or eventfd(2).
  public init(
    entries: Int, completions: Int, counters: LoopCounters = LoopCounters(), pollLimit: UInt64 = 0
  ) throws(Errno) {
    unsafe precondition(qublk_thread_context() == nil, "this thread already runs a loop")
    self.counters = counters
    isPolling = pollLimit > 0
    poll = AdaptivePoll(limit: pollLimit)
    ring = try Ring(
      entries: entries, completions: completions, counters: counters, isPolled: pollLimit > 0)
    executor = try WorkerExecutor()
    unsafe clock = .allocate(capacity: 1)
    unsafe clock.initialize(to: 0)
    unsafe wakeCounter = .allocate(capacity: 1)
    unsafe wakeCounter.initialize(to: 0)
    let context = unsafe Unmanaged.passUnretained(self).toOpaque()
    unsafe executor.bind(to: context)
    unsafe qublk_set_thread_context(context)
    armWake()
  }

  deinit {
    // Who made it and then failed has left the thread without ``leaveThread()``.
    let context = unsafe Unmanaged.passUnretained(self).toOpaque()
    if unsafe qublk_thread_context() == context { qublk_set_thread_context(nil) }
    unsafe wakeCounter.deallocate()
    unsafe clock.deallocate()
  }

  /// Traps in debug builds on any thread but the loop's own.
  @inlinable func assertOwnThread() {
    assert(WorkerLoop.current === self, "a loop is used on a thread that is not its own")
  }

  /// Takes turns until `handler` is finished.
  ///
  /// It is asked after the jobs of a turn have run and before the sleep: either may be the last.
  @inlinable public func run(_ handler: some CompletionHandler) {
    assertOwnThread()
    while true {
      executor.runReadyJobs()
      handler.endTurn()
      if handler.isFinished { return }
      enter()
      reap(handler)
    }
  }

  /// Submits what is queued and hands out all that has completed by then, in as many turns as it takes.
  public func turnWithoutWaiting(_ handler: some CompletionHandler) {
    ring.enter(waitingFor: 0)
    noteTurn()
    repeat { reap(handler) } while ring.hasCompletions
  }

  @inlinable func reap(_ handler: some CompletionHandler) {
    ring.drain { userData, result, flags in
      switch userData.kind {
      case .fetch, .transfer: handler.complete(userData, result: result)
      case .batchFetch, .batchCommit:
        handler.completeBatch(userData, result: result, flags: flags)
      case .operation: finishOperation(userData.slot, result: result)
      case .wake: armWake()
      case .ignored: break
      }
    }
  }

  /// Enters the kernel; sleeps there unless jobs are ready.
  @usableFromInline func enter() {
    if isPolling { return pollAndEnter() }
    if executor.prepareToSleep() {
      ring.enter(waitingFor: 1)
      executor.didWake()
    } else {
      ring.enter(waitingFor: 0)
    }
    noteTurn()
  }

  /// As ``enter()``, with a look for completions before the sleep.
  private func pollAndEnter() {
    defer { noteTurn() }
    guard !executor.hasJobs else { return ring.enter(waitingFor: 0) }
    let start = MonotonicClock.nanoseconds()
    let polls = poll.window > 0
    if polls {
      // What is looked for comes of what has been submitted.
      if ring.unsubmitted > 0 { ring.enter(waitingFor: 0) }
      if ring.hasCompletions { return }
      if findNews(since: start) {
        if !ring.hasCompletions { ring.enter(waitingFor: 0) }
        return
      }
    }
    if executor.prepareToSleep() {
      ring.enter(waitingFor: 1)
      executor.didWake()
    } else {
      ring.enter(waitingFor: 0)
    }
    poll.noteSleep(MonotonicClock.nanoseconds() &- start, polled: polls)
  }

  /// Looks for completions, and jobs of other threads, for as long as it is worth it; makes no system call.
  private func findNews(since start: UInt64) -> Bool {
    var time: UInt64 = 0
    var isFound = false
    repeat {
      for _ in 0..<16 {
        isFound = ring.hasNews || executor.hasJobs
        if isFound { break }
        qublk_relax()
      }
      time = MonotonicClock.nanoseconds() &- start
    } while !isFound && time < poll.window
    counters.pollNanoseconds.add(time)
    if isFound {
      counters.pollsFound.add()
      poll.noteFound()
    } else {
      counters.pollsMissed.add()
    }
    return isFound
  }

  private func noteTurn() {
    counters.turns.add()
    readClock()
  }

  /// Brings ``now`` up to date, for work that takes longer than a turn should.
  public func readClock() { unsafe clock.pointee = MonotonicClock.nanoseconds() }

  @usableFromInline func armWake() {
    var entry = unsafe SubmissionEntry.read(
      .descriptor(executor.wakeDescriptor),
      into: DataBuffer(memory: UnsafeMutableRawPointer(wakeCounter), count: 8), at: 0)
    entry.userData = UserData(.wake).word
    ring.push(entry)
  }

  /// Gives this thread back; the ring goes when the last reference to the loop does.
  public func leaveThread() { qublk_set_thread_context(nil) }

  // MARK: Files

  /// Registers `files` with the ring, as slots 0 and up in their order.
  ///
  /// - Parameters:
  ///   - files: Their descriptors.
  ///   - room: The number of slots that the table has, with those for ``setFile(_:slot:)``; at least
  ///     one for each file.
  /// - Throws: The errno of the kernel; there is no table then.
  public func registerFiles(_ files: [Int32], room: Int) throws(Errno) {
    precondition(files.count <= room, "a table of files must have a slot for each")
    try ring.registerSparseFiles(room)
    try ring.setFiles(files, from: 0)
    registeredFiles = files
  }

  /// Puts a file into a slot of the table, or takes it out, while the ring is used.
  ///
  /// Queued entries are submitted first, so each entry gets the file that its slot had when it was made.
  /// A file must be taken out before its descriptor is closed: ``file(_:)`` would take a later file with
  /// that descriptor for it.
  ///
  /// - Parameters:
  ///   - descriptor: The file; nil takes out what the slot has.
  ///   - slot: Which slot of the table.
  /// - Throws: The errno of the kernel, `EINVAL` for a slot that the table does not have. ``file(_:)``
  ///   names the slot no more, whatever the kernel has there.
  public func setFile(_ descriptor: Int32?, slot: Int) throws(Errno) {
    assertOwnThread()
    if ring.unsubmitted > 0 { ring.enter(waitingFor: 0) }
    if slot < registeredFiles.count { registeredFiles[slot] = -1 }
    try ring.setFiles([descriptor ?? -1], from: slot)
    guard let descriptor else { return }
    while registeredFiles.count <= slot { registeredFiles.append(-1) }
    registeredFiles[slot] = descriptor
  }

  /// Takes the registration back, so that the ring no longer holds the files open.
  public func unregisterFiles() {
    ring.unregisterFiles()
    registeredFiles = []
  }

  /// How entries of this ring should name `fd`: by slot if it is registered.
  public func file(_ fd: Int32) -> RingFile {
    for (slot, registered) in registeredFiles.enumerated() where registered == fd {
      return .registered(Int32(slot))
    }
    return .descriptor(fd)
  }
}
