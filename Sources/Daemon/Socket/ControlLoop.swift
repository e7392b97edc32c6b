import BlockCore
import CPlatform
import Glibc

/// What the control thread waits for: signals, requests of the commands, the end of the workers or of a
/// stop.
///
/// Between events it serves the clients of the control socket.
struct ControlLoop: ~Copyable {
  /// What has happened since the last event.
  struct Event {
    /// SIGTERM, SIGINT or SIGHUP.
    var signal: Int32?
    /// Process 1 sent it.
    var isFromInit = false
    var requests: [(ControlRequest, ControlConnection)] = []
    /// The workers have ended.
    var isEnded = false
    /// The attempt to stop has ended.
    var isAttempted = false
    /// The supervisor has died.
    var hasLostSupervisor = false
  }

  private let signals: Int32
  private var clients = ControlClients(listener: -1)

  /// Takes the signals over.
  ///
  /// To be called while there is one thread: others inherit the mask.
  init() throws(CommandError) {
    signals = qublk_signals_open()
    if signals < 0 { throw .hygiene(.signals, Errno(errno)) }
  }

  deinit { close(signals) }

  /// Starts to take requests at `path`.
  mutating func listen(at path: String) throws(CommandError) {
    let listener = unsafe qublk_unix_listen(path)
    if listener < 0 { throw .controlSocket(path, Errno(errno)) }
    clients = ControlClients(listener: listener)
  }

  /// Waits until something has happened.
  ///
  /// `ended` is readable once the workers have ended, `attempt` once an attempt to stop has ended; a
  /// negative one is not waited for. `supervisor` is a socket whose other side ends with the supervisor. What jobs have for their clients is sent meanwhile. Without `waits`,
  /// nothing may have happened.
  mutating func next(
    ended: Int32, attempt: Int32, supervisor: Int32 = -1, _ jobs: LiveHost, waits: Bool
  ) -> Event {
    while true {
      var entries = [signals, ended, attempt, jobs.descriptor].map {
        pollfd(fd: $0, events: Int16(POLLIN), revents: 0)
      }
      // Only its end is looked for: `SupervisorLink.stop` reads its answers.
      entries.append(pollfd(fd: supervisor, events: 0, revents: 0))
      let own = entries.count
      entries += clients.pollEntries
      let count = unsafe poll(
        &entries, nfds_t(entries.count), waits ? clients.milliseconds ?? -1 : 0)
      if count < 0 {
        if errno != EINTR { usleep(10_000) }  // no memory: try again
        continue
      }
      if entries[3].revents != 0 { jobs.noteNews() }
      var event = Event(requests: clients.serve(Array(entries[own...])))
      event.isEnded = entries[1].revents != 0
      event.isAttempted = entries[2].revents != 0
      if entries[0].revents != 0 {
        let signal = qublk_signals_next(signals)
        if signal != 0 { event.signal = abs(signal) }
        event.isFromInit = signal < 0
      }
      event.hasLostSupervisor = entries[4].revents & Int16(POLLHUP | POLLERR) != 0
      let isSomething =
        event.isEnded || event.isAttempted || event.signal != nil || event.hasLostSupervisor
      if isSomething || !event.requests.isEmpty || !waits { return event }
    }
  }

  /// Sends the replies that are on their way.
  mutating func drain() { clients.drain() }
}
