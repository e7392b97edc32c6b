import BlockCore
import DiskImages
import HostFiles
import Uring

/// One load-making thread: keeps `depth` requests in flight on a ring of its own, the way a queue
/// worker of the data plane does, but with requests that it makes up itself.
@safe
final class BenchWorker: CompletionHandler, @unchecked Sendable {  // why: confined to its thread
  @safe
  private struct Slot {
    var request = BlockRequest(.read)
    var transfersLeft = 0
    var failed = false
    var waiter: UnsafeContinuation<Bool, Never>?
    /// The slow-path task is to carry out `request`.
    var hasWork = false
  }

  private static let planCapacity = 16
  private let loop: WorkerLoop
  private let target: any BlockTarget
  private let options: BenchOptions
  private let number: Int
  private let slots: UnsafeMutablePointer<Slot>
  private let plans: UnsafeMutablePointer<HostTransfer>
  private let memory: IOBuffer
  private var left: Int
  private var position: UInt64
  private var sinceFlush = 0
  private var inFlight = 0
  private var tasksLeft: Int
  private var isEnding = false
  private(set) var result = BenchResult()

  init(
    _ disk: any OpenDisk, options: BenchOptions, worker: Int, share: Int
  ) throws(Errno) {
    target = disk.target
    self.options = options
    number = worker
    left = share
    position = options.offset &+ UInt64(worker * share) &* UInt64(options.stepSize)
    loop = try WorkerLoop(entries: 1024, completions: 8192)
    try loop.registerFiles(disk.files.prefix(256).map(\.descriptor))
    unsafe slots = .allocate(capacity: options.depth)
    unsafe slots.initialize(repeating: Slot(), count: options.depth)
    unsafe plans = .allocate(capacity: options.depth * Self.planCapacity)
    memory = IOBuffer(count: options.depth * options.bufferSize)
    unsafe memory.base.initializeMemory(
      as: UInt8.self, repeating: options.pattern, count: memory.count)
    tasksLeft = options.depth
  }

  deinit {
    unsafe slots.deallocate()
    unsafe plans.deallocate()
  }

  /// Makes the whole load; returns when every request has completed.
  func run() -> BenchResult {
    for slot in 0..<options.depth {
      Task(executorPreference: loop.executor) { await self.serveSlot(slot) }
    }
    for slot in 0..<options.depth { startNext(slot) }
    loop.run(self)
    loop.leaveThread()
    loop.unregisterFiles()
    return result
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

  // MARK: Hit path

  /// Starts the slot's next request; requests that need no transfer end here, in a loop.
  private func startNext(_ slot: Int) {
    while let request = nextRequest(slot) {
      inFlight += 1
      unsafe slots[slot].request = request
      if start(slot) { return }
      // All zeros: a read, of which finishing leaves nothing to do.
      _ = target.finish(worker: number, slot: slot, failed: false)
      note(failed: false)
    }
  }

  private func nextRequest(_ slot: Int) -> BlockRequest? {
    if options.flushInterval > 0 && sinceFlush >= options.flushInterval {
      sinceFlush = 0
      result.flushes += 1
      return BlockRequest(.flush)
    }
    if left == 0 { return nil }
    left -= 1
    let size = UInt64(options.bufferSize)
    let end = target.size
    if position >= end { position = end == 0 ? 0 : position % end }  // as qemu-img bench does
    if position &+ size > end { position = 0 }
    let offset = position
    position &+= UInt64(options.stepSize)
    if options.isWrite { sinceFlush += 1 }
    return BlockRequest(
      options.isWrite ? .write : .read, offset: GuestOffset(offset), length: size,
      data: memory.data.slice(slot * options.bufferSize, options.bufferSize))
  }

  /// - Returns: false if the request is done already: all zeros.
  private func start(_ slot: Int) -> Bool {
    let plan = unsafe UnsafeMutableBufferPointer(
      start: plans + slot * Self.planCapacity, count: Self.planCapacity)
    switch unsafe target.plan(slots[slot].request, worker: number, slot: slot, into: plan) {
    case .needsService:
      handOver(slot)
      return true
    case .transfers(let count):
      result.hits += 1
      unsafe submit(slot, plan, count)
      return unsafe slots[slot].transfersLeft > 0
    }
  }

  private func submit(
    _ slot: Int, _ plan: UnsafeMutableBufferPointer<HostTransfer>, _ count: Int
  ) {
    unsafe slots[slot].transfersLeft = 0
    unsafe slots[slot].failed = false
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
        options.isWrite ? .write(file, from: data, at: at) : .read(file, into: data, at: at)
      entry.userData = UserData(.transfer, slot: slot, part: part).word
      loop.ring.push(entry)
    }
  }

  func complete(_ userData: UserData, result: Int32) {
    let slot = userData.slot
    if unsafe result != Int32(plans[slot * Self.planCapacity + userData.part].length) {
      unsafe slots[slot].failed = true
    }
    unsafe slots[slot].transfersLeft -= 1
    if unsafe slots[slot].transfersLeft == 0 { endHit(slot) }
  }

  private func endHit(_ slot: Int) {
    let failed = unsafe slots[slot].failed
    if target.finish(worker: number, slot: slot, failed: failed) == .needsService {
      return handOver(slot)
    }
    note(failed: failed)
    startNext(slot)
  }

  private func note(failed: Bool) {
    inFlight -= 1
    result.requests += 1
    if failed { result.failures += 1 }
  }

  // MARK: Slow path

  private func handOver(_ slot: Int) {
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
      note(failed: outcome != .done)
      startNext(slot)
    }
    tasksLeft -= 1
  }

  private func hasWork(_ slot: Int) async -> Bool {
    if unsafe slots[slot].hasWork { return true }
    if isEnding { return false }
    return unsafe await withUnsafeContinuation { unsafe slots[slot].waiter = unsafe $0 }
  }
}
