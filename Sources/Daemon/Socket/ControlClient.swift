import CPlatform
import Glibc
import HostFiles
package import JSON

/// The commands' side of the control socket.
package enum ControlClient {
  /// What came of a request.
  package enum Answer: Equatable {
    case result(JSONValue)
    case error(ControlError)
    /// Nobody listens, or the connection ended without an answer.
    case nothing
    /// The daemon said nothing for ``silence`` seconds, or cannot: a signal has stopped it.
    case silent(process: Int32)
  }

  /// A daemon that works on a request says so every second.
  package static let silence = 10.0
  /// The most bytes of a message: more than all queues' histograms can take.
  private static let messageLimit = 64 << 20

  /// Sends a request and waits for the reply, for as long as the daemon says that it works on it.
  ///
  /// `isCancelled` is asked every 0.2 seconds. If it says so once, the daemon is told that the job is not
  /// wanted any more; its answer then says whether that came in time. `onEvent` gets each message before the
  /// last.
  package static func ask(
    _ request: ControlRequest, socket: String, silence: Double = silence,
    isCancelled: () -> Bool = { false }, onEvent: (ControlMessage) -> Void = { _ in }
  ) -> Answer {
    let descriptor = unsafe qublk_unix_connect(socket)
    // A daemon that stands still has a queue of clients that it does not accept.
    guard descriptor >= 0 else { return errno == EAGAIN ? .silent(process: 0) : .nothing }
    defer { close(descriptor) }
    let process = qublk_unix_peer(descriptor)
    guard send(descriptor, request.line + "\n") else { return .nothing }
    return reply(descriptor, process, silence, isCancelled, onEvent)
  }

  /// Sends a line that fits the socket's buffer; a daemon that has hung up is no signal to us.
  private static func send(_ descriptor: Int32, _ line: String) -> Bool {
    let bytes = Array(line.utf8)
    return unsafe Glibc.send(descriptor, bytes, bytes.count, Int32(MSG_NOSIGNAL)) == bytes.count
  }

  private static func reply(
    _ descriptor: Int32, _ process: Int32, _ silence: Double, _ isCancelled: () -> Bool,
    _ onEvent: (ControlMessage) -> Void
  ) -> Answer {
    var hasCancelled = false
    var deadline = Deadline(seconds: silence)
    var line: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 65536)
    while line.count < messageLimit {
      if !hasCancelled, isCancelled() {
        hasCancelled = true
        _ = send(descriptor, ControlRequest.cancellation + "\n")
      }
      guard waitReadable(descriptor, milliseconds: min(deadline.milliseconds, 200)) else {
        if deadline.hasPassed || ProcessState(of: process).isStopped {
          return .silent(process: process)
        }
        continue
      }
      let count = unsafe read(descriptor, &chunk, chunk.count)
      if count < 0, errno == EINTR || errno == EAGAIN { continue }
      guard count > 0 else { return .nothing }
      deadline = Deadline(seconds: silence)
      var rest = chunk[..<count]
      while let end = rest.firstIndex(of: UInt8(ascii: "\n")) {
        line += rest[..<end]
        switch ControlMessage(parsing: line) {
        case .result(let value): return .result(value)
        case .error(let error): return .error(error)
        case let event?: onEvent(event)
        case nil: return .nothing
        }
        line = []
        rest = rest[(end + 1)...]
      }
      line += rest
    }
    return .nothing
  }
}

/// What a process is at, as /proc shows it.
struct ProcessState: Equatable {
  /// R, S, D, T, t, Z…; nil if there is no such process.
  let letter: Character?

  init(of process: Int32) {
    let lines = smallFile("/proc/\(process)/status").split(separator: "\n")
    let state = lines.first { $0.hasPrefix("State:") }
    letter = state?.dropFirst("State:".count).first { $0 != "\t" && $0 != " " }
  }

  /// Stopped by a signal or a debugger.
  var isStopped: Bool { letter == "T" || letter == "t" }

  var text: String {
    switch letter {
    case "T", "t": "it is stopped (state \(letter ?? "T"))"
    case "D": "it waits for the host's storage (state D)"
    case let letter?: "it is in state \(letter)"
    case nil: "it is gone"
    }
  }
}
