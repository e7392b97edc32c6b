import BlockCore
import DiskImages
import HostFiles
import Serving
import Uring

/// One load-making thread: keeps `depth` requests in flight on a ring of its own, carried out as those
/// of a queue are, but made up here.
@safe
final class BenchWorker: CompletionHandler, RingSource, @unchecked Sendable {
  // why: confined to its thread

  let loop: WorkerLoop
  var firstFile: Int32 { 0 }
  /// Not asked for: all buffers are memory.
  var zeroFile: RingFile { .descriptor(-1) }
  private let requests: RequestDriver
  private let options: BenchOptions
  private let readMemory: IOBuffer
  private let writeMemory: IOBuffer
  // Behind pointers, what every request changes costs no check of exclusive access.
  private let load: UnsafeMutablePointer<BenchLoad>
  /// The loop's clock at which no more requests begin.
  private var deadline = UInt64.max
  /// All requests are done but for a flush, which others wait for.
  private var isDrained = false
  private var flushWaits = false
  private var tasksLeft = 0
  private var isEnding = false
  /// The slot whose request is being started; -1 for none.
  private var starting = -1
  /// The request that is being started has ended already.
  private var hasEndedAtOnce = false

  /// A loop on the calling thread, with room for all that can be in flight.
  static func makeLoop(
    _ options: BenchOptions, _ counters: QueueCounters
  ) throws(Errno) -> WorkerLoop {
    try WorkerLoop(
      entries: max(256, options.depth * 2),
      completions: min(65536, options.depth * (RequestDriver.planCapacity + 2) + 1024),
      counters: counters.loop)
  }

  /// - Parameters:
  ///   - disk: What the load goes to.
  ///   - options: The load of all queues.
  ///   - loop: From ``makeLoop(_:_:)``, on this thread.
  ///   - worker: The number of the queue.
  ///   - counters: Where everything is counted; of this worker alone.
  /// - Throws: The errno with which the ring does not take the files.
  init(
    _ disk: any OpenDisk, _ options: BenchOptions, _ loop: WorkerLoop, worker: Int,
    _ counters: QueueCounters
  ) throws(Errno) {
    self.options = options
    self.loop = loop
    requests = RequestDriver(
      disk.target, worker: worker, slots: 0..<options.depth, counters: counters)
    let files = disk.files.prefix(256).map(\.descriptor)
    try loop.registerFiles(files, room: files.count)
    unsafe load = .allocate(capacity: 1)
    unsafe load.initialize(to: BenchLoad(options, size: disk.target.size, queue: worker))
    readMemory = IOBuffer(count: options.reads ? options.depth * options.bufferSize : 0)
    writeMemory = IOBuffer(count: options.writes ? options.depth * options.bufferSize : 0)
    unsafe writeMemory.base.initializeMemory(
      as: UInt8.self, repeating: options.pattern, count: writeMemory.count)
  }

  deinit { unsafe load.deallocate() }

  /// Makes the whole load; returns when every request has completed.
  ///
  /// - Returns: The times of the first request and of the last completion, by `MonotonicClock`.
  func run() -> ClosedRange<UInt64> {
    loop.readClock()
    let start = loop.now
    if let seconds = options.seconds { deadline = start &+ UInt64(seconds * 1e9) }
    startAll()
    loop.run(self)
    return start...MonotonicClock.nanoseconds()
  }

  /// In place of ``run()``: ends without a request.
  func giveUp() {
    unsafe load.pointee.stop()
    loop.run(self)
  }

  var isFinished: Bool {
    if requests.inFlight == 0 && !isEnding {
      isEnding = true
      requests.endTasks()
    }
    return isEnding && tasksLeft == 0
  }

  // MARK: Requests

  private func startAll() {
    for slot in 0..<options.depth { startNext(slot) }
  }

  /// Starts the slot's next request; requests that end at once, all zeros, are followed here by others,
  /// in a loop.
  private func startNext(_ slot: Int) {
    var atOnce = 0
    while let request = nextRequest(slot) {
      starting = slot
      hasEndedAtOnce = false
      requests.start(request, slot: slot, for: self)
      starting = -1
      if !hasEndedAtOnce { return }
      atOnce += 1
      // No turn of the loop comes in between: the clock must go on for the load to end in time.
      if atOnce & 63 == 0 { loop.readClock() }
    }
  }

  /// - Returns: nil if there is nothing to do for the slot, for now or for good.
  private func nextRequest(_ slot: Int) -> BlockRequest? {
    if isDrained { return nil }
    if !flushWaits {
      if loop.now >= deadline { unsafe load.pointee.stop() }
      switch unsafe load.pointee.next() {
      case .end: return nil
      case .transfer(let operation, let offset): return transfer(slot, operation, offset)
      case .flush: flushWaits = options.drainsForFlush
      }
    }
    if flushWaits && requests.inFlight > 0 { return nil }
    isDrained = flushWaits
    flushWaits = false
    return BlockRequest(.flush)
  }

  private func transfer(
    _ slot: Int, _ operation: BlockOperation, _ offset: UInt64
  ) -> BlockRequest {
    let memory = operation == .write ? writeMemory : readMemory
    return BlockRequest(
      operation, offset: GuestOffset(offset), length: UInt64(options.bufferSize),
      data: memory.data.slice(slot * options.bufferSize, options.bufferSize),
      isFUA: operation == .write && options.writesThrough)
  }

  // MARK: The source of requests

  func complete(_ userData: UserData, result: Int32) {
    requests.transferred(userData.slot, part: userData.part, result: result, for: self)
  }

  func serve(_ request: BlockRequest, slot: Int) async -> Errno? {
    await requests.target.serve(
      request, at: RequestSlot(worker: requests.worker, number: slot)
    ).errno
  }

  func spawn(_ body: @escaping @Sendable () async -> Void) {
    tasksLeft += 1
    Task(executorPreference: loop.executor) {
      await body()
      self.tasksLeft -= 1
    }
  }

  /// Goes on after a request that has ended: with the slot, or with all if they waited for it.
  func ended(_ slot: Int, failure: Int32) {
    if slot == starting {
      hasEndedAtOnce = true
    } else if isDrained {
      isDrained = false
      startAll()
    } else {
      startNext(slot)
    }
  }
}
