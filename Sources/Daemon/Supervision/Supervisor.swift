import BlockCore
import CPlatform
import DiskImages
import Glibc
import HostFiles
import Logging
import Ublk

/// What a server is started for.
package struct ServerStart {
  /// How the device comes to be.
  package enum Mode: Sendable {
    case new
    /// The device is there, and its server is gone. The lock of its directory is held.
    case recover(DeviceName, lock: Int32)
  }

  /// What is served, and how.
  package var request: AttachRequest
  /// How the device comes to be.
  package var mode: Mode

  /// A start with a new device.
  package init(_ request: AttachRequest) {
    self.request = request
    mode = .new
  }

  init(_ request: AttachRequest, recover device: DeviceName, lock: Int32) {
    self.request = request
    mode = .recover(device, lock: lock)
  }
}

/// The parent of a server, which does nothing else: it holds what must outlive the server, starts the next
/// server if that one dies, and stops the device when the server asks for it.
///
/// It has one thread and makes no more, so that a child is whole after fork(2): the next server needs no
/// program file, no arguments and no passphrase from anywhere. What it holds are the image's files with their
/// locks and claims, the lock of the device's directory, and the request with its passphrases, in locked
/// memory. It never opens /dev/ublkcN. Files that a server opens anew are looked up where the first one looked
/// them up: the supervisor stays in the mount namespace in which the device was added.
///
/// docs/decisions/0025-supervisor.md says why.
package struct Supervisor: ~Copyable {
  private enum Phase {
    /// The first server has not told that it serves.
    case starting
    case serving
    /// No server; the next one starts at this moment of the clock, in milliseconds.
    case waiting(until: UInt64)
    /// A new server is on its way.
    case recovering
    /// No server. `qublk recover` starts the next one.
    case quiesced
  }

  /// What a server does; returns when it has ended by its own will.
  package typealias Server = (ServerStart, ReadySignal, SupervisorLink) throws(CommandError) -> Void

  private var start: ServerStart
  /// What the program was called before it became a supervisor; its servers are called so.
  private let programName: String
  private let serve: Server
  private let signals: Int32
  private var link: Int32 = -1
  private var server: pid_t = 0
  private var phase = Phase.starting
  private var policy = RestartPolicy()
  /// When the server told that it serves, by the clock; nil while it does not.
  private var servingSince: UInt64?
  private var held: [Int32] = []
  private var lock: Int32 = -1
  private var device: DeviceName?
  private var isRecoverable = false
  /// Why the last server could not serve, and whether that is the end.
  private var failure: (text: String, isFinal: Bool)?
  /// The last SIGTERM or SIGINT, negative if process 1 sent it; 0 while none has come.
  ///
  /// It came here, or to a server that waits for its users to leave since then. That one may die: the next one is
  /// told, too.
  private var order: Int32 = 0
  /// The process that stops the device, and what the server calls the request.
  private var stop: (process: pid_t, number: Int)?

  // MARK: Life

  /// Runs a server, and the next one if it dies; ends the process as the last server ended.
  ///
  /// To be called while there is one thread.
  ///
  /// - Parameters:
  ///   - start: What is to be served.
  ///   - ready: For the first server.
  ///   - serve: The server's work, in a child.
  /// - Throws: If there is no server at all.
  package static func run(
    _ start: ServerStart, _ ready: ReadySignal, serve: @escaping Server = DeviceServer.run
  ) throws(CommandError) -> Never {
    var supervisor = try Supervisor(start, serve)
    try supervisor.startServer(ready)
    ready.leave()
    while true { supervisor.turn() }
  }

  private init(_ start: ServerStart, _ serve: @escaping Server) throws(CommandError) {
    self.start = start
    self.serve = serve
    programName = String(smallFile("/proc/self/comm").prefix { $0 != "\n" })
    Hygiene.markAsStorageDaemon()
    signals = qublk_parent_signals_open()
    if signals < 0 { throw .hygiene(.signals, Errno(errno)) }
    if case .recover(let device, let lock) = start.mode {
      self.device = device
      self.lock = lock
      isRecoverable = true
    }
  }

  private mutating func startServer(_ ready: ReadySignal?) throws(CommandError) {
    var ends: [Int32] = [-1, -1]
    guard unsafe qublk_message_pair(&ends) == 0 else { throw .fork(Errno(errno)) }
    let parent = getpid()
    let child = qublk_process_fork()
    guard child >= 0 else {
      let error = Errno(errno)
      close(ends[0])
      close(ends[1])
      throw .fork(error)
    }
    if child == 0 {
      close(ends[0])
      close(signals)
      if link >= 0 { close(link) }
      runServer(next, ready, SupervisorLink(descriptor: ends[1], process: parent))
    }
    unsafe qublk_name_thread(LockHolder.supervisorName)
    close(ends[1])
    link = ends[0]
    server = child
    servingSince = nil
    failure = nil
  }

  /// What the next server is started for.
  private var next: ServerStart {
    guard let device, isRecoverable else { return start }
    return ServerStart(start.request, recover: device, lock: lock)
  }

  private func runServer(
    _ start: ServerStart, _ ready: ReadySignal?, _ link: SupervisorLink
  ) -> Never {
    setsid()
    unsafe qublk_name_thread(programName)
    let ready = ready ?? ReadySignal(restartFor: link)
    do throws(CommandError) {
      var start = start
      if !held.isEmpty { start.request.disk.held = .init(held) }
      try serve(start, ready, link)
      exit(0)
    } catch {
      ready.fail(error)
      exit(1)
    }
  }

  // MARK: Events

  private mutating func turn() {
    var entries = [signals, link].map { pollfd(fd: $0, events: Int16(POLLIN), revents: 0) }
    let count = unsafe poll(&entries, 2, pause)
    if count < 0, errno != EINTR { usleep(10_000) }  // no memory: try again
    takeMessages()
    takeSignals()
    reap()
    if case .waiting(let moment) = phase, MonotonicClock.milliseconds() >= moment { recover() }
  }

  private var pause: Int32 {
    guard case .waiting(let moment) = phase else { return -1 }
    let now = MonotonicClock.milliseconds()
    return moment > now ? Int32(clamping: moment - now) : 0
  }

  private mutating func takeSignals() {
    while true {
      let signal = qublk_signals_next(signals)
      guard signal != 0 else { return }
      guard abs(signal) != SIGCHLD else { continue }
      if abs(signal) != SIGHUP { order = signal }
      switch phase {
      case .starting, .serving: pass(signal)
      case .quiesced: leaveQuiesced()
      // The next server hears of it: to leave now would leave a device in use without one.
      case .recovering: break
      case .waiting: leaveIfGone()
      }
    }
  }

  private func pass(_ signal: Int32) {
    guard server > 0 else { return }
    _ = qublk_signal_pass(server, abs(signal), signal < 0 ? 1 : 0)
  }

  private mutating func takeMessages() {
    while link >= 0 {
      switch SupervisorMessage.receive(link) {
      case .message(let message, let descriptors): take(message, descriptors)
      case .nothing: return
      case .end:
        close(link)
        link = -1
      }
    }
  }

  private mutating func take(_ message: SupervisorMessage, _ descriptors: [Int32]) {
    switch message {
    case .files:
      // The first server's: later ones work with the same.
      held += descriptors
    case .lock: lock = descriptors.first ?? -1
    case .device(let id, let isRecoverable):
      device = DeviceName(id: id)
      self.isRecoverable = isRecoverable
    case .serving: noteServing()
    case .failed(let text, let isFinal): failure = (text, isFinal)
    case .leaving(let signal): order = signal
    case .stop(let number, let ifUnused): startStop(number, ifUnused)
    case .stopped: break
    }
  }

  private mutating func noteServing() {
    servingSince = MonotonicClock.milliseconds()
    let isFirst: Bool
    if case .starting = phase { isFirst = true } else { isFirst = false }
    phase = .serving
    guard isFirst else {
      if order != 0 { pass(order) }
      return
    }
    // From now on it must live: before, its end told the user what went wrong.
    if let device {
      do throws(CommandError) {
        try Log.redirect(orTo: StateDirectory(id: device.id).log)
      } catch { Log.logger.warning("\(error.text)") }
    }
    do throws(CommandError) { try Hygiene.setIOFlusher() } catch {
      Log.logger.warning("supervisor: \(error.text)")
    }
    for text in Hygiene.protectMemory() { Log.logger.warning("supervisor: \(text)") }
  }

  // MARK: Children

  private mutating func reap() {
    while true {
      var status: Int32 = 0
      let process = unsafe waitpid(-1, &status, WNOHANG)
      guard process > 0 else { return }
      if process == server {
        takeMessages()
        serverEnded(status)
      } else if let stop, process == stop.process {
        answer(stop.number, status)
      }
    }
  }

  private mutating func serverEnded(_ status: Int32) {
    server = 0
    if link >= 0 { close(link) }
    link = -1
    let signal = qublk_wait_signal(status)
    switch phase {
    case .starting: endStart(status)
    case .serving where signal == 0: exit(qublk_wait_exit(status))
    case .serving, .recovering, .waiting, .quiesced:
      guard isRecoverable else {
        Log.logger.error("\(name): the daemon ended: \(CommandError.ending(status))")
        exit(1)
      }
      serverDied(status)
    }
  }

  /// The first server ended before the device was known to anybody: nothing of it may stay.
  private mutating func endStart(_ status: Int32) -> Never {
    let signal = qublk_wait_signal(status)
    guard signal != 0 else { exit(qublk_wait_exit(status)) }
    if case .new = start.mode, let device {
      DriverChild.run { DriverChild.takeAway(device) }
      if lock >= 0 { StateDirectory(id: device.id).remove() }
    }
    qublk_end_by_signal(signal)
    exit(1)
  }

  private mutating func serverDied(_ status: Int32) {
    let now = MonotonicClock.milliseconds()
    let served = servingSince.map { Double(now - min($0, now)) / 1000 }
    servingSince = nil
    let why = failure?.text ?? "the daemon ended: \(CommandError.ending(status))"
    Log.logger.error("\(name): \(why)")
    let stored = directory?.read()?.recovery?.phase
    if served == nil { leaveIfGone() }
    let decision = policy.serverDied(
      served: served, phase: stored, isFinal: failure?.isFinal ?? false,
      isBreach: qublk_wait_signal(status) == Int32(QUBLK_BREACH_SIGNAL))
    switch decision {
    case .giveUp(.lastChance):
      giveUp("\(why) at a moment at which this kernel takes no other daemon afterwards", .fetching)
    case .giveUp(.final): giveUp(why)
    case .giveUp(.breaches):
      giveUp(
        "the sandbox has killed \(RestartPolicy.breachLimit) daemons: \(why); with --sandbox off it cannot"
      )
    case .giveUp(.tooOften):
      giveUp("\(RestartPolicy.limit) daemons in a row ended soon, the last one so: \(why)")
    case .start(let milliseconds):
      note(.recovering, reason: why)
      phase = .waiting(until: now + UInt64(milliseconds))
    }
  }

  /// Ends if another process has stopped the device.
  private func leaveIfGone() {
    guard let device, DriverChild.isGone(device) else { return }
    Log.logger.error("\(name): the device was stopped meanwhile")
    directory?.remove(keepingLog: true)
    exit(1)
  }

  private mutating func recover() {
    phase = .recovering
    do throws(CommandError) { try startServer(nil) } catch {
      failure = (error.text, false)
      phase = .waiting(until: MonotonicClock.milliseconds() + UInt64(RestartPolicy.longestPause))
      Log.logger.error("\(name): \(error.text)")
    }
  }

  /// Leaves the device to a person, with its files and locks held: nobody else may take the image.
  ///
  /// `stored` is what the state file has from then on; it keeps ``DeviceState/Recovery/Phase/fetching``.
  private mutating func giveUp(
    _ reason: String, _ stored: DeviceState.Recovery.Phase = .quiesced
  ) {
    phase = .quiesced
    note(stored, reason: reason)
    Log.logger.error(
      "\(name): waits for \"qublk recover \(device.map { String($0.id) } ?? "")\": \(reason)")
  }

  /// A signal ends a supervisor that has given up; the device stays as it is.
  private func leaveQuiesced() -> Never {
    let reason = directory?.read()?.recovery?.reason
    note(.quiesced, reason: reason ?? "the supervisor was told to end while no daemon could serve")
    exit(0)
  }

  private var name: String { device?.path ?? "device" }
  private var directory: StateDirectory? { device.map { StateDirectory(id: $0.id) } }

  private func note(_ phase: DeviceState.Recovery.Phase, reason: String?) {
    directory?.update {
      $0.phase = phase
      $0.reason = reason
    }
  }

  // MARK: Stopping the device

  private mutating func startStop(_ number: Int, _ ifUnused: Bool) {
    guard let device, stop == nil else {
      SupervisorMessage.stopped(number: number, errno: EBUSY).send(link)
      return
    }
    let child = qublk_process_fork()
    if child == 0 { DriverChild.stop(device, ifUnused, isRecoverable) }
    guard child > 0 else {
      SupervisorMessage.stopped(number: number, errno: errno).send(link)
      return
    }
    stop = (child, number)
  }

  private mutating func answer(_ number: Int, _ status: Int32) {
    stop = nil
    let code = qublk_wait_signal(status) == 0 ? qublk_wait_exit(status) : EINTR
    if link >= 0 { SupervisorMessage.stopped(number: number, errno: code).send(link) }
  }
}
