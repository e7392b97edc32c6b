import BlockCore
import CPlatform
import Glibc

/// What the control thread waits for: signals, requests of the commands, the end of the workers.
struct ControlLoop: ~Copyable {
  enum Event: ~Copyable {
    /// SIGTERM, SIGINT or SIGHUP.
    case signal(Int32)
    case request(ControlConnection)
    /// The workers have ended: another process stopped the device.
    case ended
    case timeout
  }

  private let signals: Int32
  private var listener: Int32 = -1

  /// Takes the signals over.
  ///
  /// To be called while there is one thread: others inherit the mask.
  init() throws(CommandError) {
    signals = qublk_signals_open()
    if signals < 0 { throw .hygiene(.signals, Errno(errno)) }
  }

  deinit {
    close(signals)
    if listener >= 0 { close(listener) }
  }

  /// Starts to take requests at `path`.
  mutating func listen(at path: String) throws(CommandError) {
    listener = unsafe qublk_unix_listen(path)
    if listener < 0 { throw .controlSocket(path, Errno(errno)) }
  }

  /// The next event.
  ///
  /// - Parameters:
  ///   - ended: A descriptor that becomes readable when the workers have ended.
  ///   - milliseconds: How long to wait; -1 for ever.
  /// - Returns: The end first, then signals, then requests.
  func next(ended: Int32, milliseconds: Int32) -> Event {
    let deadline = Deadline(seconds: Double(milliseconds) / 1000)
    while true {
      var entries = [signals, listener, ended].map {
        pollfd(fd: $0, events: Int16(POLLIN), revents: 0)
      }
      let left = milliseconds < 0 ? -1 : deadline.milliseconds
      let count = unsafe poll(&entries, nfds_t(entries.count), left)
      if count < 0, errno == EINTR { continue }
      if entries[2].revents != 0 { return .ended }
      if entries[0].revents != 0 {
        let signal = qublk_signals_next(signals)
        if signal != 0 { return .signal(signal) }
      }
      if entries[1].revents != 0, let connection = ControlConnection(listener: listener) {
        return .request(connection)
      }
      if count <= 0 { return .timeout }
    }
  }
}
