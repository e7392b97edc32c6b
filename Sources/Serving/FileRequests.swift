public import BlockCore
import Synchronization

/// Requests whose callers wait for them, with transfers by host files as they are: `qublk io` and tests.
///
/// A request runs in its caller's task, its transfers one after the other. Requests in different slots may
/// run at the same time, on any threads that the target allows.
public final class FileRequests: Sendable {
  private let target: any BlockTarget
  private let files: [any HostFile]
  private let worker: Int
  /// One for each slot that was used, so that slots share nothing.
  private let drivers = Mutex<[Int: RequestDriver]>([:])

  /// - Parameters:
  ///   - target: What serves the requests.
  ///   - files: What the numbers in transfers stand for.
  ///   - worker: The target's number of the worker that requests count as.
  public init(_ target: any BlockTarget, files: [any HostFile], worker: Int) {
    self.target = target
    self.files = files
    self.worker = worker
  }

  /// Carries out one request in a slot that has none.
  ///
  /// - Parameters:
  ///   - request: What is asked.
  ///   - slot: One of the target's slots of this worker.
  ///   - plans: Whether the hit path may answer.
  /// - Returns: The errno if it failed.
  public func perform(
    _ request: BlockRequest, slot: Int, plans: Bool = true
  ) async -> Errno? {
    let driver = driver(of: slot)
    let source = CallerSource(driver, files, move: nil)
    if plans {
      driver.start(request, slot: slot, for: source)
    } else {
      driver.startOnSlowPath(request, slot: slot, for: source)
    }
    return await source.outcome()
  }

  /// Carries out one request without memory for its data: each transfer is the caller's.
  ///
  /// - Parameters:
  ///   - request: A read or write. Its data is not looked at.
  ///   - slot: One of the target's slots of this worker.
  ///   - move: Carries a transfer out, and returns its bytes or a negative errno, as ``RequestSource`` does;
  ///     a part of the transfer may come again.
  /// - Returns: The errno if it failed: `.notSupported` if the request needs memory.
  public func perform(
    _ request: BlockRequest, slot: Int,
    moving move: @escaping @Sendable (HostTransfer, any HostFile) async -> Int32
  ) async -> Errno? {
    let driver = driver(of: slot)
    let source = CallerSource(driver, files, move: move)
    var bare = request
    // Of no ring: whatever would look at the data is refused by ``CallerSource/serve(_:slot:)``.
    bare.data = DataBuffer(registered: 0, offset: 0, count: Int(request.length))
    driver.start(bare, slot: slot, for: source)
    return await source.outcome()
  }

  private func driver(of slot: Int) -> RequestDriver {
    drivers.withLock { drivers in
      if let driver = drivers[slot] { return driver }
      let driver = RequestDriver(
        target, worker: worker, slots: slot..<slot + 1, counters: QueueCounters())
      // The task of a slot ends with its request.
      driver.endTasks()
      drivers[slot] = driver
      return driver
    }
  }
}

/// The source of one request, whose caller does the work.
private final class CallerSource: RequestSource, @unchecked Sendable {
  // why: confined to the caller's task.

  private let requests: RequestDriver
  private let files: [any HostFile]
  /// Carries transfers out in place of the files.
  private let move: (@Sendable (HostTransfer, any HostFile) async -> Int32)?
  /// Whether all transfers so far were carried out, so that the rest needs no data; nil before the first.
  private var hasMoved: Bool?
  private var work: [@Sendable () async -> Void] = []
  private var failure: Int32?

  init(
    _ requests: RequestDriver, _ files: [any HostFile],
    move: (@Sendable (HostTransfer, any HostFile) async -> Int32)?
  ) {
    self.requests = requests
    self.files = files
    self.move = move
  }

  /// Does what there is to do until the request has ended, which is when nothing is left.
  func outcome() async -> Errno? {
    while failure == nil, !work.isEmpty {
      let next = work.removeFirst()
      await next()
    }
    assert(failure != nil, "a request has nothing left to do and has not ended")
    let failure = failure ?? Errno.io.code
    return failure == 0 ? nil : Errno(failure)
  }

  let now: UInt64 = 0

  func readClock() {}

  func submit(_ transfer: HostTransfer, _ data: DataBuffer, isRead: Bool, slot: Int, part: Int) {
    spawn { [self] in
      let result = await carryOut(transfer, data, isRead)
      requests.transferred(slot, part: part, result: result, for: self)
    }
  }

  private func carryOut(
    _ transfer: HostTransfer, _ data: DataBuffer, _ isRead: Bool
  ) async -> Int32 {
    let file = files[Int(transfer.file)]
    if let move {
      guard transfer.kind == .file else { return -Errno.notSupported.code }
      let result = await move(transfer, file)
      hasMoved = result > 0 && hasMoved != false
      return result
    }
    do throws(Errno) {
      switch transfer.kind {
      case .zeroes: try await file.fillWithZeroes(data)
      case .file where isRead: try await file.read(into: data, at: transfer.hostOffset)
      case .file: try await file.write(from: data, at: transfer.hostOffset)
      }
      return Int32(bitPattern: transfer.length)
    } catch { return -error.code }
  }

  func serve(_ request: BlockRequest, slot: Int) async -> Errno? {
    if move != nil, hasMoved != true { return .notSupported }
    return await requests.target.serve(
      request, at: RequestSlot(worker: requests.worker, number: slot)
    ).errno
  }

  func ended(_ slot: Int, failure: Int32) { self.failure = failure }

  func spawn(_ body: @escaping @Sendable () async -> Void) { work.append(body) }

  /// Not called: host files try again by themselves.
  func pause(milliseconds: Int) async { await Task.yield() }
}
