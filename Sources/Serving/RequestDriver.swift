public import BlockCore

/// Carries the requests of one worker from their start to their end.
///
/// The one place that knows the order of ``BlockTarget``: plan, transfers, finish, service. A request
/// takes the hit path, where the plan's transfers go straight to the host files, or the slow path, where
/// a task of its slot has the target serve it; or the first and then the second.
///
/// Made and used on the worker's thread. What a request costs here is counted (`scripts/counts`): no
/// allocation, no retain, and what changes lies behind pointers, where it costs no check of exclusive
/// access.
@safe
public final class RequestDriver: @unchecked Sendable {  // why: confined to its worker's thread
  /// The most host transfers of one plan.
  @inlinable public static var planCapacity: Int { 32 }

  /// What serves the requests.
  public let target: any BlockTarget
  /// The target's number of the worker.
  public let worker: Int
  /// Where requests and transfers are counted; of this worker alone.
  public let counters: QueueCounters
  /// The slots' numbers, which the target knows, too.
  public let slots: Range<Int>
  // Of slot 0, which need not be there.
  @usableFromInline let states: UnsafeMutablePointer<RequestState>
  @usableFromInline let plans: UnsafeMutablePointer<HostTransfer>
  @usableFromInline let running: UnsafeMutablePointer<Int>
  @usableFromInline let turns: UnsafeMutablePointer<ServingTurns>
  @usableFromInline let options: RequestDriverOptions
  /// No task takes another request.
  @usableFromInline var isEnding = false

  /// - Parameters:
  ///   - target: What serves the requests.
  ///   - worker: The target's number of the worker.
  ///   - slots: The slots' numbers, one for each request in flight; the target knows them, too.
  ///   - counters: Where requests and transfers are counted; of this worker alone.
  ///   - options: What differs between sources.
  public init(
    _ target: any BlockTarget, worker: Int, slots: Range<Int>, counters: QueueCounters,
    options: RequestDriverOptions = RequestDriverOptions()
  ) {
    self.target = target
    self.worker = worker
    self.slots = slots
    self.counters = counters
    self.options = options
    let states = UnsafeMutablePointer<RequestState>.allocate(capacity: slots.count)
    unsafe states.initialize(repeating: RequestState(), count: slots.count)
    unsafe self.states = unsafe states - slots.lowerBound
    let plans = UnsafeMutablePointer<HostTransfer>.allocate(
      capacity: slots.count * Self.planCapacity)
    unsafe plans.initialize(
      repeating: HostTransfer(kind: .zeroes, length: 0, dataOffset: 0, hostOffset: HostOffset(0)),
      count: slots.count * Self.planCapacity)
    unsafe self.plans = unsafe plans - slots.lowerBound * Self.planCapacity
    unsafe running = .allocate(capacity: 1)
    unsafe running.initialize(to: 0)
    unsafe turns = .allocate(capacity: 1)
    unsafe turns.initialize(
      to: ServingTurns(limit: options.servingLimit ?? slots.count, slots: slots.count))
  }

  deinit {
    let states = unsafe states + slots.lowerBound
    unsafe states.deinitialize(count: slots.count)
    unsafe states.deallocate()
    unsafe (plans + slots.lowerBound * Self.planCapacity).deallocate()
    unsafe running.deallocate()
    unsafe turns.deallocate()
  }

  /// The size of the disk in bytes; a call, since inlined it would cost a retain.
  public var size: UInt64 {
    @inline(never) get { target.size }
  }

  /// The number of requests that have started and not ended.
  @inlinable public var inFlight: Int { unsafe running.pointee }

  /// The request in `slot`, from its start until its source has been told its end.
  @inlinable public func request(_ slot: Int) -> BlockRequest { unsafe states[slot].request }

  /// Whether some requests may have to wait for others on the slow path.
  @inlinable public var isLimited: Bool { unsafe turns.pointee.areLimited }

  /// Starts a request in a slot that has none.
  ///
  /// Reads and writes are planned, if nothing more is asked of them. Everything else waits for metadata
  /// or changes it, which is never a matter of transfers alone.
  @inlinable public func start<Source: RequestSource>(
    _ request: BlockRequest, slot: Int, for source: Source
  ) {
    begin(request, slot, source)
    let plain = request.plainOperation
    guard plain == .read || plain == .write else { return startServing(slot, for: source) }
    let buffer = unsafe UnsafeMutableBufferPointer(
      start: plans + slot * Self.planCapacity, count: Self.planCapacity)
    switch unsafe target.plan(
      request, at: RequestSlot(worker: worker, number: slot), into: buffer)
    {
    case .transfers(let count): startTransfers(slot, count, source)
    case .needsService: startServing(slot, for: source)
    }
  }

  /// Starts a request that ``RequestSource/serve(_:slot:)`` must see.
  @inlinable public func startOnSlowPath<Source: RequestSource>(
    _ request: BlockRequest, slot: Int, for source: Source
  ) {
    begin(request, slot, source)
    startServing(slot, for: source)
  }

  @inlinable @inline(__always) func begin<Source: RequestSource>(
    _ request: BlockRequest, _ slot: Int, _ source: Source
  ) {
    assert(slots.contains(slot), "there is no such slot")
    counters.arrivals.add()
    unsafe running.pointee &+= 1
    unsafe states[slot].request = request
    unsafe states[slot].arrival = source.now
  }

  /// The request in `slot` is over.
  @inlinable @inline(__always) func end<Source: RequestSource>(
    _ slot: Int, _ failure: Int32, _ source: Source
  ) {
    unsafe counters.noteEnd(
      states[slot].request.operation, nanoseconds: source.now &- states[slot].arrival,
      bytes: failure == 0 ? states[slot].request.length : 0)
    if failure != 0 { counters.failures.add() }
    unsafe running.pointee &-= 1
    source.ended(slot, failure: failure)
  }
}

/// What differs between the sources of requests.
public struct RequestDriverOptions: Sendable {
  /// The requests that the slow path serves at once, at least 1; nil for all.
  ///
  /// Bounds the memory that requests take. Others wait for their turn.
  public var servingLimit: Int?
  /// Called when the slow path failed with ENOSPC, with the number of times it was asked before for this
  /// request: waits as long as it sees fit and says whether to serve the request again.
  public var retryNoSpace: (@Sendable (_ attempt: Int) async -> Bool)?
  /// Called when a transfer of a plan has failed, with the errno: must not wait.
  public var onTransferFailure: (@Sendable (HostTransfer, BlockOperation, Errno) -> Void)?

  public init() {}
}
