import BlockCore
import Serving
import Synchronization
import Uring

/// A source whose host file is an array, and whose transfers end as a script says.
///
/// All of it on one worker's thread, so that tasks run as they do in the program.
final class ScriptedSource: CompletionHandler, RequestSource, @unchecked Sendable {
  // why: confined to its thread.

  struct Submission: Equatable {
    var hostOffset: UInt64
    var count: Int
    var isRead: Bool
    var kind = HostTransfer.Kind.file
  }

  let loop: WorkerLoop
  let requests: RequestDriver
  /// The host file's bytes.
  var file: [UInt8]
  /// What a transfer answers: of its own count, and its number from 0 on.
  var answer: (_ count: Int, _ number: Int) -> Int32 = { count, _ in Int32(count) }
  /// Called when a request has ended, after it was noted.
  var onEnd: (_ slot: Int) -> Void = { _ in }
  private(set) var submissions: [Submission] = []
  private(set) var ends: [(slot: Int, failure: Int32)] = []
  private(set) var pauses: [Int] = []
  private var tasks = 0

  init(
    _ target: any BlockTarget, slots: Int, options: RequestDriverOptions, file: [UInt8]
  ) throws(Errno) {
    loop = try WorkerLoop(entries: 64, completions: 256)
    requests = RequestDriver(
      target, worker: 0, slots: 0..<slots, counters: QueueCounters(), options: options)
    self.file = file
  }

  /// Runs `body` on a thread of its own with a source, and then the source until nothing is left.
  static func run(
    _ target: any BlockTarget, slots: Int = 8,
    options: RequestDriverOptions = RequestDriverOptions(), file: [UInt8] = [],
    _ body: @escaping @Sendable (ScriptedSource) -> Void,
    then check: @escaping @Sendable (ScriptedSource) throws -> Void
  ) throws {
    let failure = Failure()
    let thread = try WorkerThread(name: "serving") {
      do {
        let source = try ScriptedSource(target, slots: slots, options: options, file: file)
        defer { source.loop.leaveThread() }
        body(source)
        source.loop.run(source)
        try check(source)
      } catch { failure.error.withLock { $0 = error } }
    }
    thread.join()
    if let error = failure.error.withLock({ $0 }) { throw error }
  }

  private final class Failure: Sendable {
    let error = Mutex<(any Error)?>(nil)
  }

  var isFinished: Bool {
    if requests.inFlight == 0 { requests.endTasks() }
    return tasks == 0 && loop.operationsInFlight == 0
  }

  func complete(_ userData: UserData, result: Int32) {}

  // MARK: The source

  let now: UInt64 = 0

  func readClock() {}

  func submit(_ transfer: HostTransfer, _ data: DataBuffer, isRead: Bool, slot: Int, part: Int) {
    let result = answer(data.count, submissions.count)
    submissions.append(
      Submission(
        hostOffset: transfer.hostOffset.bytes, count: data.count, isRead: isRead,
        kind: transfer.kind))
    if result > 0, let memory = data.memory {
      move(memory, Int(transfer.hostOffset.bytes), min(Int(result), data.count), isRead)
    }
    spawn { [self] in requests.transferred(slot, part: part, result: result, for: self) }
  }

  private func move(_ memory: UnsafeMutableRawPointer, _ offset: Int, _ count: Int, _ isRead: Bool)
  {
    let bytes = UnsafeMutableRawBufferPointer(start: memory, count: count)
    for index in 0..<count {
      if isRead {
        bytes[index] = file[offset + index]
      } else {
        file[offset + index] = bytes[index]
      }
    }
  }

  func serve(_ request: BlockRequest, slot: Int) async -> Errno? {
    await requests.target.serve(request, at: RequestSlot(worker: 0, number: slot)).errno
  }

  func ended(_ slot: Int, failure: Int32) {
    ends.append((slot, failure))
    onEnd(slot)
  }

  func spawn(_ body: @escaping @Sendable () async -> Void) {
    tasks += 1
    Task(executorPreference: loop.executor) {
      await body()
      self.tasks -= 1
    }
  }

  func pause(milliseconds: Int) async {
    pauses.append(milliseconds)
    await Task.yield()
  }
}

/// Answers as it is told, and notes what it was asked.
final class ScriptedTarget: BlockTarget {
  struct Seen {
    var planned: [BlockOperation] = []
    var finished: [Bool] = []
    var served: [BlockOperation] = []
  }

  let size: UInt64 = 1 << 20
  let seen = Mutex(Seen())
  private let plan: [HostTransfer]?
  private let rest: FinishResult
  private let outcome: ServiceResult

  /// - Parameters:
  ///   - plan: What reads and writes consist of; nil to serve them.
  ///   - rest: What is left when they have been carried out.
  ///   - outcome: How service ends.
  init(_ plan: [HostTransfer]?, rest: FinishResult = .done, outcome: ServiceResult = .done) {
    self.plan = plan
    self.rest = rest
    self.outcome = outcome
  }

  func plan(
    _ request: BlockRequest, at slot: RequestSlot,
    into buffer: UnsafeMutableBufferPointer<HostTransfer>
  ) -> PlanResult {
    seen.withLock { $0.planned.append(request.operation) }
    guard let plan else { return .needsService }
    for (place, transfer) in plan.enumerated() { buffer[place] = transfer }
    return .transfers(count: plan.count)
  }

  func finish(at slot: RequestSlot, failed: Bool) -> FinishResult {
    seen.withLock { $0.finished.append(failed) }
    return failed ? .done : rest
  }

  func serve(_ request: BlockRequest, at slot: RequestSlot) async -> ServiceResult {
    seen.withLock { $0.served.append(request.operation) }
    await Task.yield()
    return outcome
  }
}

extension HostTransfer {
  /// A transfer of `count` bytes with the host file.
  static func file(_ count: Int, data: Int = 0, at offset: UInt64) -> HostTransfer {
    HostTransfer(
      kind: .file, length: UInt32(count), dataOffset: UInt32(data), hostOffset: HostOffset(offset))
  }
}
