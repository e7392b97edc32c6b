import BlockCore
import CPlatform
import Glibc

/// What `qublk del` and `qublk stats` ask of a daemon, over /run/qublk/ID/control: one line a
/// connection.
enum ControlRequest: String {
  case stop
  case stopForced = "stop --force"
  case stats
}

/// What the daemon answers; then the connection ends.
enum ControlReply: Equatable {
  /// All is written, the device is gone.
  case done
  /// Nothing has changed, for this reason.
  case refused(String)
  /// The device is gone, but something went wrong on the way: data may be lost.
  case failed(String)
  /// What ``ControlRequest/stats`` asks for.
  case report(String)

  var text: String {
    switch self {
    case .done: "done"
    case .refused(let text): "refused \(text)"
    case .failed(let text): "failed \(text)"
    case .report(let text): "report \(text)"
    }
  }

  init?(_ line: String) {
    if line == "done" {
      self = .done
    } else if line.hasPrefix("refused ") {
      self = .refused(String(line.dropFirst("refused ".count)))
    } else if line.hasPrefix("failed ") {
      self = .failed(String(line.dropFirst("failed ".count)))
    } else if line.hasPrefix("report ") {
      self = .report(String(line.dropFirst("report ".count)))
    } else {
      return nil
    }
  }
}

/// The daemon's side of a connection: a request that waits for its reply.
///
/// The thread that waits for signals, too, talks to clients: none may keep it for long.
struct ControlConnection: ~Copyable {
  let request: ControlRequest
  private let descriptor: Int32
  private let seconds: Double
  /// The microseconds after which to try again for a client that could not be accepted.
  static let pause: UInt32 = 100_000

  /// The next connection of a listening socket; nil if it brought no request that is understood.
  ///
  /// - Parameters:
  ///   - listener: The socket; readable.
  ///   - seconds: How long the client may take over its request, and again over taking the reply.
  init?(listener: Int32, seconds: Double = 5) {
    let descriptor = qublk_unix_accept(listener)
    guard descriptor >= 0 else {
      // Without room for another descriptor the client stays where it is, and the listener readable.
      usleep(Self.pause)
      return nil
    }
    guard
      let request = readLine(descriptor, Deadline(seconds: seconds)).flatMap(ControlRequest.init)
    else {
      close(descriptor)
      return nil
    }
    self.descriptor = descriptor
    self.request = request
    self.seconds = seconds
  }

  /// Answers and ends the connection.
  ///
  /// Whoever asked may be gone; nobody minds.
  consuming func reply(_ reply: ControlReply) {
    send(Array((reply.text + "\n").utf8), to: descriptor, Deadline(seconds: seconds))
  }

  deinit { close(descriptor) }
}

/// The commands' side.
enum ControlClient {
  /// More than all queues' histograms can take.
  private static let replyLimit = 64 << 20

  /// Sends a request and waits, however long the last flush takes.
  ///
  /// - Returns: nil if the daemon could not be reached or ended without an answer.
  static func ask(_ request: ControlRequest, socket: String) -> ControlReply? {
    let descriptor = unsafe qublk_unix_connect(socket)
    guard descriptor >= 0 else { return nil }
    defer { close(descriptor) }
    guard writeAll(descriptor, request.rawValue + "\n"),
      let answer = readAll(descriptor, limit: replyLimit)
    else {
      return nil
    }
    return ControlReply(String(answer.dropLast()))
  }
}

/// One line of at most 100 bytes, without its newline; nil if it is not whole in time.
private func readLine(_ descriptor: Int32, _ deadline: Deadline) -> String? {
  var bytes: [UInt8] = []
  var byte: UInt8 = 0
  while bytes.count < 100, isReady(descriptor, POLLIN, deadline),
    unsafe read(descriptor, &byte, 1) == 1
  {
    if byte == UInt8(ascii: "\n") { return String(decoding: bytes, as: UTF8.self) }
    bytes.append(byte)
  }
  return nil
}

/// Sends what the other side takes in time.
private func send(_ bytes: [UInt8], to descriptor: Int32, _ deadline: Deadline) {
  var done = 0
  while done < bytes.count, isReady(descriptor, POLLOUT, deadline) {
    let count = unsafe bytes[done...].withUnsafeBytes {
      unsafe Glibc.send(descriptor, $0.baseAddress, $0.count, Int32(MSG_DONTWAIT))
    }
    if count < 0, errno == EINTR || errno == EAGAIN { continue }
    guard count > 0 else { return }
    done += count
  }
}

/// Waits until a transfer would not wait; false when the time is over.
private func isReady(_ descriptor: Int32, _ event: Int32, _ deadline: Deadline) -> Bool {
  while !deadline.hasPassed {
    var entry = pollfd(fd: descriptor, events: Int16(event), revents: 0)
    let count = unsafe poll(&entry, 1, deadline.milliseconds)
    if count > 0 { return true }
    if count < 0, errno != EINTR { return false }
  }
  return false
}
