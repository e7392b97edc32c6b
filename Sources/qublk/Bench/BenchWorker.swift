import BlockCore
import DiskImages
import HostFiles
import Ublk
import Uring

/// One load-making thread: keeps `depth` requests in flight on a ring of its own, the way a queue
/// worker of the data plane does, but with requests that it makes up itself.
@safe
final class BenchWorker: CompletionHandler, @unchecked Sendable {  // why: confined to its thread
  @safe
  private struct Slot {
    var request = BlockRequest(.read)
    /// When the request began, by the loop's clock.
    var arrival: UInt64 = 0
    var transfersLeft = 0
    var failed = false
    /// A transfer did less than it was asked for: the slow path is to do it again.
    var isShort = false
    var waiter: UnsafeContinuation<Bool, Never>?
    /// The slow-path task is to carry out `request`.
    var hasWork = false
  }

  private static let planCapacity = 32
  private let loop: WorkerLoop
  private let target: any BlockTarget
  private let options: BenchOptions
  private let number: Int
  private let slots: UnsafeMutablePointer<Slot>
  private let plans: UnsafeMutablePointer<HostTransfer>
  private let readMemory: IOBuffer
  private let writeMemory: IOBuffer
  private let counters: QueueCounters
  // Behind pointers, what every request changes costs no check of exclusive access.
  private let load: UnsafeMutablePointer<BenchLoad>
  /// The loop's clock at which no more requests begin.
  private var deadline = UInt64.max
  private var inFlight = 0
  /// All requests are done but for a flush, which others wait for.
  private var isDrained = false
  private var flushWaits = false
  private var tasksLeft: Int
  private var isEnding = false

  /// A loop on the calling thread, with room for all that can be in flight.
  static func makeLoop(
    _ options: BenchOptions, _ counters: QueueCounters
  ) throws(Errno) -> WorkerLoop {
    try WorkerLoop(
      entries: max(256, options.depth * 2),
      completions: min(65536, options.depth * (planCapacity + 2) + 1024), counters: counters.loop)
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
    target = disk.target
    self.options = options
    self.counters = counters
    number = worker
    self.loop = loop
    try loop.registerFiles(disk.files.prefix(256).map(\.descriptor))
    unsafe load = .allocate(capacity: 1)
    unsafe load.initialize(to: BenchLoad(options, size: disk.target.size, queue: worker))
    unsafe slots = .allocate(capacity: options.depth)
    unsafe slots.initialize(repeating: Slot(), count: options.depth)
    unsafe plans = .allocate(capacity: options.depth * Self.planCapacity)
    readMemory = IOBuffer(count: options.reads ? options.depth * options.bufferSize : 0)
    writeMemory = IOBuffer(count: options.writes ? options.depth * options.bufferSize : 0)
    unsafe writeMemory.base.initializeMemory(
      as: UInt8.self, repeating: options.pattern, count: writeMemory.count)
    tasksLeft = options.depth
    for slot in 0..<options.depth {
      Task(executorPreference: loop.executor) { await self.serveSlot(slot) }
    }
  }

  deinit {
    unsafe load.deallocate()
    unsafe slots.deallocate()
    unsafe plans.deallocate()
  }

  /// Makes the whole load; returns when every request has completed.
  ///
  /// - Returns: The times of the first request and of the last completion, by `NanosecondClock`.
  func run() -> ClosedRange<UInt64> {
    loop.readClock()
    let start = loop.now
    if let seconds = options.seconds { deadline = start &+ UInt64(seconds * 1e9) }
    startAll()
    loop.run(self)
    return start...NanosecondClock.now()
  }

  /// In place of ``run()``: ends without a request.
  func giveUp() {
    unsafe load.pointee.stop()
    loop.run(self)
  }

  var isFinished: Bool {
    if inFlight == 0 && !isEnding { end() }
    return isEnding && tasksLeft == 0
  }

  private func end() {
    isEnding = true
    for slot in 0..<options.depth {
      let waiter = unsafe slots[slot].waiter
      unsafe slots[slot].waiter = nil
      unsafe waiter?.resume(returning: false)
    }
  }

  // MARK: Requests

  private func startAll() {
    for slot in 0..<options.depth { startNext(slot) }
  }

  /// Starts the slot's next request; requests that need no transfer end here, in a loop.
  private func startNext(_ slot: Int) {
    var atOnce = 0
    while let request = nextRequest(slot) {
      inFlight += 1
      counters.arrivals.add()
      unsafe slots[slot].request = request
      unsafe slots[slot].arrival = loop.now
      if start(slot) { return }
      // All zeros: a read, of which finishing leaves nothing to do.
      _ = target.finish(worker: number, slot: slot, failed: false)
      note(slot, failed: false)
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
    if flushWaits && inFlight > 0 { return nil }
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

  private func note(_ slot: Int, failed: Bool) {
    let request = unsafe slots[slot].request
    unsafe counters.noteEnd(
      request.operation, nanoseconds: loop.now &- slots[slot].arrival,
      bytes: failed ? 0 : request.length)
    inFlight -= 1
    if failed { counters.failures.add() }
  }

  /// Goes on after a request that has ended: with the slot, or with all if they waited for it.
  private func goOn(_ slot: Int) {
    guard isDrained else { return startNext(slot) }
    isDrained = false
    startAll()
  }

  // MARK: Hit path

  /// - Returns: false if the request is done already: all zeros.
  private func start(_ slot: Int) -> Bool {
    if unsafe slots[slot].request.isFUA || slots[slot].request.operation == .flush {
      handOver(slot)
      return true
    }
    let plan = unsafe UnsafeMutableBufferPointer(
      start: plans + slot * Self.planCapacity, count: Self.planCapacity)
    switch unsafe target.plan(slots[slot].request, worker: number, slot: slot, into: plan) {
    case .needsService:
      handOver(slot)
      return true
    case .transfers(let count):
      unsafe submit(slot, plan, count)
      return unsafe slots[slot].transfersLeft > 0
    }
  }

  private func submit(
    _ slot: Int, _ plan: UnsafeMutableBufferPointer<HostTransfer>, _ count: Int
  ) {
    unsafe slots[slot].transfersLeft = 0
    unsafe slots[slot].failed = false
    unsafe slots[slot].isShort = false
    let isWrite = unsafe slots[slot].request.operation == .write
    for part in 0..<count {
      let data = unsafe slots[slot].request.data.slice(
        Int(plan[part].dataOffset), Int(plan[part].length))
      if unsafe plan[part].kind == .zeroes {
        unsafe data.memory?.initializeMemory(as: UInt8.self, repeating: 0, count: data.count)
        continue
      }
      unsafe slots[slot].transfersLeft += 1
      let at = unsafe plan[part].hostOffset.bytes
      let file = unsafe RingFile.registered(Int32(plan[part].file))
      var entry: SubmissionEntry =
        isWrite ? .write(file, from: data, at: at) : .read(file, into: data, at: at)
      entry.userData = UserData(.transfer, slot: slot, part: part).word
      loop.ring.push(entry)
      counters.transfers.add()
    }
  }

  func complete(_ userData: UserData, result: Int32) {
    let slot = userData.slot
    if unsafe result != Int32(plans[slot * Self.planCapacity + userData.part].length) {
      if result < 0 {
        unsafe slots[slot].failed = true
      } else {
        unsafe slots[slot].isShort = true
      }
    }
    unsafe slots[slot].transfersLeft -= 1
    if unsafe slots[slot].transfersLeft == 0 { endHit(slot) }
  }

  private func endHit(_ slot: Int) {
    let failed = unsafe slots[slot].failed
    let isShort = unsafe slots[slot].isShort
    if target.finish(worker: number, slot: slot, failed: failed || isShort) == .needsService {
      return handOver(slot)
    }
    if isShort && !failed { return handOver(slot) }
    note(slot, failed: failed)
    goOn(slot)
  }

  // MARK: Slow path

  private func handOver(_ slot: Int) {
    unsafe counters.noteSlow(slots[slot].request.operation)
    unsafe slots[slot].hasWork = true
    let waiter = unsafe slots[slot].waiter
    unsafe slots[slot].waiter = nil
    unsafe waiter?.resume(returning: true)
  }

  /// One long-lived task per slot, so that a slow request makes no new task.
  private func serveSlot(_ slot: Int) async {
    while await hasWork(slot) {
      unsafe slots[slot].hasWork = false
      let outcome = unsafe await target.serve(slots[slot].request, worker: number, slot: slot)
      loop.readClock()
      note(slot, failed: outcome != .done)
      goOn(slot)
    }
    tasksLeft -= 1
  }

  private func hasWork(_ slot: Int) async -> Bool {
    if unsafe slots[slot].hasWork { return true }
    if isEnding { return false }
    return unsafe await withUnsafeContinuation { unsafe slots[slot].waiter = unsafe $0 }
  }
}
