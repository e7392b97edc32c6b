import CPlatform
import Glibc

/// What a server and its supervisor tell each other, over a pair of sockets that both inherit: one letter
/// and a text, and descriptors beside it.
enum SupervisorMessage: Equatable {
  // From the server:

  /// The files of the image, open and locked; with their descriptors, in one or more messages.
  case files
  /// The lock of the device's directory; with its descriptor.
  case lock
  /// There is a device; whether it outlives its server.
  case device(id: UInt32, isRecoverable: Bool)
  /// The device is served, and the command that asked for it has its name.
  case serving
  /// The server cannot go on serving a device whose server has died. `isFinal`: nor could another one.
  case failed(String, isFinal: Bool)
  /// SIGTERM or SIGINT, negative if process 1 sent it, has found the device in use: the server ends with the last user.
  case leaving(signal: Int32)
  /// The device is to be stopped; the number comes back with the answer.
  case stop(number: Int, ifUnused: Bool)

  // From the supervisor:

  /// What came of a stop: 0 or the driver's errno.
  case stopped(number: Int, errno: Int32)

  /// The most bytes of a message.
  static let limit = 8192
  /// The most descriptors of a message.
  static let descriptorLimit = 253

  var text: String {
    switch self {
    case .files: "F"
    case .lock: "L"
    case .device(let id, let isRecoverable): "D\(id) \(isRecoverable ? 1 : 0)"
    case .serving: "S"
    case .failed(let text, let isFinal): (isFinal ? "X" : "E") + text
    case .leaving(let signal): "T\(signal)"
    case .stop(let number, let ifUnused): "Q\(number) \(ifUnused ? 1 : 0)"
    case .stopped(let number, let errno): "A\(number) \(errno)"
    }
  }

  /// Reads a message; nil for anything else.
  init?(_ text: String) {
    guard let letter = text.first else { return nil }
    let rest = text.dropFirst()
    let numbers = rest.split(separator: " ").map { Int($0) }
    let first = numbers.first ?? nil
    let second = numbers.count == 2 ? numbers[1] : nil
    switch (letter, first, second) {
    case ("F", _, _): self = .files
    case ("L", _, _): self = .lock
    case ("D", let id?, let flag?):
      guard let id = UInt32(exactly: id) else { return nil }
      self = .device(id: id, isRecoverable: flag == 1)
    case ("S", _, _): self = .serving
    case ("E", _, _): self = .failed(String(rest), isFinal: false)
    case ("X", _, _): self = .failed(String(rest), isFinal: true)
    case ("T", let signal?, _):
      guard [SIGTERM, SIGINT].contains(where: { signal.magnitude == UInt($0) }) else { return nil }
      self = .leaving(signal: Int32(signal))
    case ("Q", let number?, let flag?): self = .stop(number: number, ifUnused: flag == 1)
    case ("A", let number?, let code?):
      guard let code = Int32(exactly: code) else { return nil }
      self = .stopped(number: number, errno: code)
    default: return nil
    }
  }

  /// Sends the message; false if nobody is there.
  @discardableResult
  func send(_ socket: Int32, _ descriptors: [Int32] = []) -> Bool {
    let bytes = Array(text.utf8.prefix(Self.limit))
    return unsafe qublk_message_send(
      socket, bytes, bytes.count, descriptors, Int32(descriptors.count)) == 0
  }

  /// What ``receive(_:)`` found.
  enum Received {
    case message(SupervisorMessage, [Int32])
    /// Nothing at this moment, or something that is no message.
    case nothing
    /// The other side is gone.
    case end
  }

  /// Takes the next message, without waiting.
  static func receive(_ socket: Int32) -> Received {
    var bytes = [UInt8](repeating: 0, count: limit)
    var descriptors = [Int32](repeating: -1, count: descriptorLimit)
    var count = Int32(descriptors.count)
    let size = unsafe qublk_message_receive(socket, &bytes, bytes.count, &descriptors, &count)
    guard size != 0 else { return .end }
    guard size > 0 else { return errno == ECONNRESET ? .end : .nothing }
    let came = Array(descriptors.prefix(Int(count)))
    guard let message = Self(String(decoding: bytes.prefix(size), as: UTF8.self)) else {
      for descriptor in came { close(descriptor) }
      return .nothing
    }
    return .message(message, came)
  }
}
