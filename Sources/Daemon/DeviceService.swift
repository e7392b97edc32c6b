import BlockCore
import Glibc
import Logging
import Ublk

/// The time from ready to gone: waits for reasons to stop the device, and stops it.
///
/// One attempt to stop runs at a time; what comes meanwhile waits for its outcome.
struct DeviceService: ~Copyable {
  private enum Reason {
    case signal(Int32, at: Double, isFromInit: Bool)
    case request(ControlRequest.Stop, ControlConnection)
    /// The workers have ended: another process stopped the device.
    case stoppedByOther
    /// A queue was lost, and requests wait in it: nothing is gained by waiting for users.
    case loss(UblkError)
  }

  private let device: ServedDevice
  private var signals = StopSignals()
  private var attempt: DeviceStop?
  /// What ``attempt`` is made for; empty if it waits for users after a signal.
  private var reasons: [Reason] = []
  private var waiting: [Reason] = []
  /// The end of the workers has been noted.
  private var isEndNoted = false
  /// What ends with the supervisor; -1 without one.
  private var supervisor: Int32

  init(_ device: ServedDevice) {
    self.device = device
    supervisor = device.supervisor?.descriptor ?? -1
  }

  /// Serves until the device is gone.
  ///
  /// - Throws: What went wrong at the end, if no client could be told.
  mutating func run(_ loop: inout ControlLoop) throws(CommandError) {
    while true {
      startNext()
      // An attempt without a thread has ended before it could be watched.
      note(
        loop.next(
          ended: isEndNoted ? -1 : device.endedDescriptor, attempt: attempt?.descriptor ?? -1,
          supervisor: supervisor, device.jobs, waits: attempt?.outcome == nil))
      guard let attempt, let outcome = attempt.outcome else { continue }
      self.attempt = nil
      guard case .ended(let errors) = outcome else {
        answer(outcome)
        continue
      }
      try end(errors, &loop)
      return
    }
  }

  // MARK: Reasons

  private mutating func note(_ event: ControlLoop.Event) {
    // An attempt that stops the device ends the workers, too: then this reason comes too late to matter.
    if event.isEnded {
      isEndNoted = true
      waiting.insert(device.loss.map(Reason.loss) ?? .stoppedByOther, at: 0)
    }
    if event.hasLostSupervisor {
      supervisor = -1
      Log.logger.warning(
        "\(device.name.path): the supervisor is gone: nobody starts a new daemon if this one dies")
    }
    if let signal = event.signal {
      waiting.append(.signal(signal, at: StopSignals.now, isFromInit: event.isFromInit))
    }
    for (request, connection) in event.requests { note(request, connection) }
    // Users are waited for no longer if there is something else to do.
    if !waiting.isEmpty, attempt?.manner == .whenUnused { attempt?.cancel() }
    giveUpSearch()
  }

  private mutating func note(_ request: ControlRequest, _ connection: ControlConnection) {
    switch request {
    case .stop(let request): waiting.append(.request(request, connection))
    case .stats: connection.reply(.result(device.report))
    case .jobs: connection.reply(.result(device.jobs.list))
    case .job(let name, let arguments):
      do throws(ControlError) {
        connection.follow(try device.jobs.start(name, arguments))
      } catch { connection.reply(.error(error)) }
    }
  }

  /// Ends the search for users if something waits that does not ask for them.
  ///
  /// A search hangs if one of them uses a file system that does not answer. Who asked for it learns how
  /// the device ended.
  private mutating func giveUpSearch() {
    guard let attempt, attempt.manner != .forced, waiting.contains(where: Self.isForced),
      attempt.abandon()
    else { return }
    self.attempt = nil
    waiting = waiting.filter(Self.isForced) + reasons + waiting.filter { !Self.isForced($0) }
    reasons = []
  }

  private static func isForced(_ reason: Reason) -> Bool {
    switch reason {
    case .request(.forced, _), .stoppedByOther, .loss: true
    case .request, .signal: false
    }
  }

  /// Starts the attempt that the oldest reason asks for, if none runs.
  private mutating func startNext() {
    while attempt == nil, !waiting.isEmpty {
      let reason = waiting.removeFirst()
      switch reason {
      case .signal(let signal, let time, let isFromInit):
        switch signals.answer(signal, at: time, isFromInit: isFromInit) {
        case .stopIfUnused: start(.ifUnused, [reason])
        case .insist: start(.forced, [reason])
        case .ignore: break
        }
      // There is no disk any more that users could keep.
      case .stoppedByOther: start(.forced, [reason])
      case .loss(let loss):
        Log.logger.error("\(device.name.path): \(loss.text): stopping the device")
        start(.forced, [reason])
      // Who has gone has been told nothing of a device that ends.
      case .request(let request, let connection):
        guard connection.hasClient else { break }
        start(Self.manner(request), [reason] + takeAll(request))
      }
    }
    if attempt == nil, signals.leaving != nil { start(.whenUnused, []) }
  }

  private static func manner(_ request: ControlRequest.Stop) -> DeviceStop.Manner {
    switch request {
    case .check: .check
    case .ifUnused: .ifUnused
    case .forced: .forced
    }
  }

  /// The same request of other clients: one attempt answers them all.
  private mutating func takeAll(_ request: ControlRequest.Stop) -> [Reason] {
    func isSame(_ reason: Reason) -> Bool {
      if case .request(request, _) = reason { true } else { false }
    }
    defer { waiting.removeAll(where: isSame) }
    return waiting.filter(isSame)
  }

  private mutating func start(_ manner: DeviceStop.Manner, _ reasons: [Reason]) {
    self.reasons = reasons
    attempt = DeviceStop(manner) { [device] attempt in device.stop(attempt) }
  }

  // MARK: Outcomes

  /// Tells what came of an attempt after which the device serves on.
  private mutating func answer(_ outcome: DeviceStop.Outcome) {
    var errors: [CommandError] = []
    if case .serving(let found) = outcome { errors = found }
    let text = errors.map(\.text).joined(separator: "; ")
    for reason in reasons {
      switch reason {
      case .signal(let signal, let time, let isFromInit):
        noteRefusal(signal, time, isFromInit, errors)
      case .request(_, let connection):
        connection.reply(errors.isEmpty ? .done : .error(ControlError(.refused, text)))
      case .stoppedByOther, .loss: Log.logger.error("\(text): serving on")
      }
    }
    if reasons.isEmpty { for error in errors { Log.logger.error("\(error.text): serving on") } }
    reasons = []
  }

  private mutating func noteRefusal(
    _ signal: Int32, _ time: Double, _ isFromInit: Bool, _ errors: [CommandError]
  ) {
    if case .busy(_, let use)? = errors.first {
      signals.noteInUse(signal, at: time)
      if signal != SIGHUP { device.supervisor?.tell(leaving: isFromInit ? -signal : signal) }
      let text = StopSignals.text(signal, isFromInit: isFromInit)
      Log.logger.warning("\(device.name.path): \(use.text): \(text)")
    } else {
      for error in errors { Log.logger.error("\(error.text): serving on") }
    }
  }

  /// Tells everyone that the device is gone: the first client whether that went well, all others that
  /// it was not they who stopped it.
  private func end(_ errors: [CommandError], _ loop: inout ControlLoop) throws(CommandError) {
    var isTold = false
    var all = errors
    for reason in reasons + waiting {
      if case .loss(let loss) = reason { all.append(.lost(device.name, loss)) }
      guard case .request(let request, let connection) = reason else { continue }
      let isFirst = !isTold && request != .check && !reasons.isEmpty && connection.hasClient
      if isFirst {
        isTold = true
        let texts = errors.map(\.text) + (device.trouble.map { [$0] } ?? [])
        let text = texts.joined(separator: "; ")
        connection.reply(errors.isEmpty ? .done : .error(ControlError(.failed, text)))
      } else {
        connection.reply(.gone)
      }
    }
    device.forget(keepingLog: !all.isEmpty && !isTold)
    loop.drain()
    if !all.isEmpty, !isTold { throw .notStopped(all) }
  }
}
