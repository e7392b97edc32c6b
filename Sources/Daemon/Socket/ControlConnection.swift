import CPlatform
import Glibc

/// The daemon's side of one connection; never waits for the client.
final class ControlConnection {
  /// The most bytes of a request, with its newline.
  private static let requestLimit = 100

  enum State: Equatable {
    /// The request has not come whole.
    case reading
    /// The request was handed on; ``ControlConnection/reply(_:)`` is to come.
    case working
    /// The reply is on its way.
    case writing
    case ended
  }

  private(set) var state = State.reading
  private let descriptor: Int32
  /// How long the client may take over its request, and again over taking the reply.
  private let seconds: Double
  private var deadline: Deadline
  private var input: [UInt8] = []
  private var output: [UInt8] = []
  private var written = 0
  private var nextWaitLine = Deadline(seconds: 1)

  init(descriptor: Int32, seconds: Double) {
    self.descriptor = descriptor
    self.seconds = seconds
    deadline = Deadline(seconds: seconds)
  }

  deinit { close(descriptor) }

  /// What to wait for; nothing but the client's end while its request is worked on.
  var pollEntry: pollfd {
    let events: Int32 =
      switch state {
      case .reading: POLLIN
      case .writing: POLLOUT
      case .working, .ended: 0
      }
    return pollfd(fd: descriptor, events: Int16(events), revents: 0)
  }

  /// The milliseconds after which ``check()`` has something to do.
  var milliseconds: Int32 {
    switch state {
    case .reading, .writing: deadline.milliseconds
    case .working: nextWaitLine.milliseconds
    case .ended: 0
    }
  }

  /// Takes what the client has sent.
  ///
  /// - Returns: The request, once it is whole.
  func takeInput() -> ControlRequest? {
    var chunk = [UInt8](repeating: 0, count: Self.requestLimit)
    let count = unsafe read(descriptor, &chunk, chunk.count)
    if count < 0, errno == EAGAIN || errno == EINTR { return nil }
    if count > 0 { input += chunk[..<count] }
    guard let end = input.firstIndex(of: UInt8(ascii: "\n")) else {
      if count <= 0 || input.count >= Self.requestLimit { state = .ended }
      return nil
    }
    let request = ControlRequest(rawValue: String(decoding: input[..<end], as: UTF8.self))
    // A client that has given up, since the daemon stood still, has told its user so.
    guard let request, hasClient else {
      state = .ended
      return nil
    }
    state = .working
    return request
  }

  /// Whether the client is still there.
  var hasClient: Bool {
    guard state != .ended else { return false }
    var entry = pollfd(fd: descriptor, events: 0, revents: 0)
    return unsafe poll(&entry, 1, 0) <= 0
  }

  /// Answers; the connection ends when the client has taken all of it, or has taken too long.
  func reply(_ reply: ControlReply) {
    guard state == .working else { return }
    output.removeFirst(written)
    written = 0
    output += Array((reply.line + "\n").utf8)
    state = .writing
    deadline = Deadline(seconds: seconds)
    sendMore()
  }

  /// Sends what the client takes now.
  func sendMore() {
    while written < output.count {
      let count = unsafe output[written...].withUnsafeBytes {
        unsafe send(descriptor, $0.baseAddress, $0.count, Int32(MSG_DONTWAIT) | Int32(MSG_NOSIGNAL))
      }
      if count < 0, errno == EINTR { continue }
      if count < 0, errno == EAGAIN { return }
      guard count > 0 else {
        state = .ended
        return
      }
      written += count
    }
    if state == .writing { state = .ended }
  }

  /// Ends a connection whose time is over, and tells a client that waits that it is not forgotten.
  func check() {
    switch state {
    case .reading, .writing: if deadline.hasPassed { state = .ended }
    case .working:
      guard nextWaitLine.hasPassed else { return }
      nextWaitLine = Deadline(seconds: 1)
      if written == output.count {
        output = Array((ControlReply.waitLine + "\n").utf8)
        written = 0
      }
      sendMore()
    case .ended: break
    }
  }

  /// Lets go of a client for another's sake.
  func drop() { state = .ended }
}
