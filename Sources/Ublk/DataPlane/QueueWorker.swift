import BlockCore
import CPlatform
import CUblk
import Serving
import Uring

/// Serves one queue: fetches requests, carries them out, commits the results.
///
/// Made, run and released on its own thread. A tag is always in exactly one ``TagState/Phase``;
/// its descriptor and buffer are touched only while the driver does not own it.
@safe
final class QueueWorker: CompletionHandler, @unchecked Sendable {
  // why: confined to its thread; tasks made here run on this thread's executor.

  /// Slots of the ring's table of files.
  static let characterSlot = RingFile.registered(0)
  static let zeroSlot = RingFile.registered(1)
  /// The slot of the host file that transfers call 0; the others follow.
  @inline(__always) static var firstFileSlot: Int32 { 2 }
  /// Enough for every number that a host file can have.
  static var fileSlots: Int { Int(firstFileSlot) + HostTransfer.fileNumbers }

  let setup: QueueSetup
  let loop: WorkerLoop
  let memory: QueueMemory
  let tags: UnsafeMutablePointer<TagState>
  /// Carries the requests out; a request's slot is its tag.
  let requests: RequestDriver
  let userCopy: UserCopy
  /// Results on their way to the driver, in batch mode.
  var batch: CommandBatch
  /// Where the driver puts the tags of requests, in batch mode.
  let fetchBuffers: ProvidedBuffers?
  /// Tags that the driver may still send requests for; in batch mode, tags with a request, and commands
  /// that have not completed.
  var openTags = 0
  /// Tasks made by this worker that have not ended.
  var liveTasks = 0
  /// The driver has taken all tags back; tasks are on their way out.
  var isEnding = false
  /// Leave, whatever the driver still holds; requests that the worker has are finished first.
  let abandoned: AbandonFlag
  /// The error with which the driver refused the queue for good, or could not make it.
  var fetchFailure: Errno?
  /// The driver had all tags once.
  private(set) var isServing = false
  /// The worker finishes the requests that it has, then leaves; new requests stay in the driver.
  private(set) var isDraining = false
  /// When the driver began to refuse every command, by the loop's clock; 0 if the last one succeeded.
  var refusedSince: UInt64 = 0

  init(
    _ setup: QueueSetup, _ abandoned: AbandonFlag, _ stage: inout WorkerStage
  ) throws(Errno) {
    self.setup = setup
    self.abandoned = abandoned
    requests = RequestDriver(
      setup.target, worker: setup.queue, slots: 0..<setup.depth, counters: setup.counters,
      options: setup.requestOptions)
    userCopy = UserCopy(characterDevice: setup.characterDevice, queue: setup.queue)
    unsafe tags = .allocate(capacity: setup.depth)
    unsafe tags.initialize(repeating: TagState(), count: setup.depth)
    stage = .ring
    loop = try Self.makeLoop(setup)
    stage = .fetch
    if let gate = setup.gate, !gate.pass() { throw .interrupted }
    stage = .memory
    memory = try QueueMemory(
      characterDevice: setup.characterDevice, queue: setup.queue, depth: setup.depth,
      bufferBytes: setup.maxIOBytes)
    batch = CommandBatch(depth: setup.depth, hasAddresses: !setup.usesZeroCopy)
    stage = .tables
    fetchBuffers = setup.usesBatches ? try Self.fetchBuffers(loop, depth: setup.depth) : nil
    try registerTables()
  }

  deinit {
    unsafe tags.deallocate()
  }

  private static func makeLoop(_ setup: QueueSetup) throws(Errno) -> WorkerLoop {
    let depth = setup.depth
    let entries = max(256, powerOfTwo(depth * 2))
    let completions = min(65536, powerOfTwo(depth * (RequestDriver.planCapacity + 2) + 1024))
    return try WorkerLoop(
      entries: entries, completions: completions, counters: setup.counters.loop,
      pollLimit: setup.pollLimit)
  }

  static func powerOfTwo(_ value: Int) -> Int {
    1 << (Int.bitWidth - (value - 1).leadingZeroBitCount)
  }

  private func registerTables() throws(Errno) {
    // Without zero copy nothing reads the slot of zeros; any file keeps the place.
    let zeroes = setup.zeroDescriptor >= 0 ? setup.zeroDescriptor : setup.characterDevice
    let files = [setup.characterDevice, zeroes] + setup.fileDescriptors
    // The kernel's limit for a table is the process's for descriptors.
    let room = min(Self.fileSlots, Int(clamping: qublk_process_descriptor_limit()))
    try loop.registerFiles(files, room: max(room, files.count))
    guard setup.usesZeroCopy else { return }
    loop.zeroFile = Self.zeroSlot
    try loop.ring.registerSparseBuffers(setup.registeredBuffers)
  }

  // MARK: Life

  /// Fetches all tags: on return the driver owns every tag, or `fetchFailure` says why not.
  func fetchAll() {
    if setup.usesBatches {
      startBatches()
    } else {
      for tag in 0..<setup.depth {
        openTags += 1
        fetch(tag)
      }
    }
    loop.turnWithoutWaiting(self)
  }

  /// Serves until the driver has taken all tags back and all tasks have ended.
  func serve() {
    isServing = true
    if let maintenance = setup.maintenance { spawn { await maintenance() } }
    loop.run(self)
    // The last results, if the driver still has tags.
    if isDraining { loop.ring.enter(waitingFor: 0) }
  }

  /// Gives back what keeps the character device busy.
  ///
  /// Linux before 6.13 would wait here for commands that the driver has and never ends: then the end of
  /// the ring takes them back, and the tables with them.
  func release() {
    guard !isDraining else { return loop.leaveThread() }
    if setup.usesZeroCopy { loop.ring.unregisterBuffers() }
    loop.unregisterFiles()
    loop.leaveThread()
  }

  var isFinished: Bool {
    if openTags > 0 {
      guard abandoned.isSet else { return false }
      isDraining = true
      guard isDrained else { return false }
    }
    if !isEnding { beginEnding() }
    return liveTasks == 0
  }

  private func beginEnding() {
    isEnding = true
    loop.endSleeps()
    requests.endTasks()
  }

  /// Runs `body` as a task on this thread; the worker stays until it has ended.
  func spawn(_ body: @escaping @Sendable () async -> Void) {
    liveTasks += 1
    Task(executorPreference: loop.executor) {
      await body()
      self.liveTasks -= 1
    }
  }

  // MARK: Completions

  func complete(_ userData: UserData, result: Int32) {
    if userData.kind == .fetch {
      arrive(userData.slot, result: result)
    } else {
      requests.transferred(userData.slot, part: userData.part, result: result, for: self)
    }
  }

  /// The driver has handed over the request in `tag`, or taken the tag back.
  private func arrive(_ tag: Int, result: Int32) {
    guard result == 0 else { return refused(tag, Errno(-result)) }
    if isDraining { return }
    refusedSince = 0
    unsafe dispatch(tag, IODescriptor(memory.descriptors[tag]))
  }
}
