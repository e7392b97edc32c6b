import BlockCore
import CPlatform
import Glibc
import JSON
import Logging
import Synchronization

/// A process beside the server that finds out who uses the device.
///
/// The search looks into all processes, which a server in its sandbox cannot. The lookout has no image, no secret and
/// no device open. It takes the number of a device and answers who uses it. It ends with the server.
final class UseLookout: Sendable {
  private static let mostBytes = 32 << 10

  private let socket: Int32
  /// One question at a time, and whether the end of the lookout was told.
  private let isLost = Mutex(false)

  private init(socket: Int32) { self.socket = socket }

  deinit { close(socket) }

  /// Starts the process.
  ///
  /// To be called while there is one thread, with the signals taken over and no image open.
  ///
  /// - Parameter forget: Drops what the child must not have: secrets.
  /// - Returns: The way to it.
  /// - Throws: ``CommandError/fork(_:)``.
  static func start(forget: () -> Void) throws(CommandError) -> UseLookout {
    var ends: [Int32] = [-1, -1]
    guard unsafe qublk_message_pair(&ends) == 0 else { throw .fork(Errno(errno)) }
    let child = qublk_process_fork()
    guard child >= 0 else { throw .fork(Errno(errno)) }
    guard child == 0 else {
      close(ends[1])
      return UseLookout(socket: ends[0])
    }
    forget()
    let own = qublk_process_detach_child(ends[1])
    unsafe qublk_name_thread("qublk-lookout")
    if own >= 0, (try? Hygiene.enterPrivateMounts()) != nil { answer(own) }
    _exit(0)
  }

  /// What uses the disk of a device or one of its partitions now; nil if nothing does.
  ///
  /// Waits as long as the search takes. Without the lookout, this process searches as far as it can.
  ///
  /// `reads`: see ``DeviceUse/find(_:reads:)``.
  func find(_ device: DeviceName, reads: Bool) -> DeviceUse? {
    let answer = isLost.withLock { isLost in
      let answer = isLost ? nil : ask(device, reads)
      if answer == nil, !isLost {
        isLost = true
        Log.logger.warning(
          "\(device.path): who uses it cannot be found by name any more: its lookout is gone")
      }
      return answer
    }
    guard let answer else { return DeviceUse.find(device, reads: reads) }
    return DeviceUse(answer)
  }

  /// Nil if there is no answer.
  private func ask(_ device: DeviceName, _ reads: Bool) -> JSONValue? {
    guard Self.send("\(device.id) \(reads ? 1 : 0)", to: socket),
      let text = Self.receive(from: socket)
    else {
      return nil
    }
    return JSONParser.parse(text)
  }

  // MARK: In the lookout

  private static func answer(_ socket: Int32) {
    while let question = receive(from: socket) {
      let words = question.split(separator: " ")
      guard words.count == 2, let id = UInt32(words[0]) else { return }
      let use = DeviceUse.find(DeviceName(id: id), reads: words[1] == "1")
      guard send((use?.json ?? .null).text, to: socket) else { return }
    }
  }

  // MARK: Messages

  private static func send(_ text: String, to socket: Int32) -> Bool {
    let bytes = Array(text.utf8)
    while true {
      let count = unsafe Glibc.send(socket, bytes, bytes.count, Int32(MSG_NOSIGNAL))
      if count < 0 && errno == EINTR { continue }
      return count == bytes.count
    }
  }

  /// Nil at the end of the other side.
  private static func receive(from socket: Int32) -> String? {
    var bytes = [UInt8](repeating: 0, count: mostBytes)
    while true {
      let count = unsafe recv(socket, &bytes, bytes.count, 0)
      if count < 0 && errno == EINTR { continue }
      return count > 0 ? String(decoding: bytes[..<count], as: UTF8.self) : nil
    }
  }
}

// MARK: - Between lookout and server

extension DeviceUse {
  /// An array: the kind, then what belongs to it.
  var json: JSONValue {
    func text(_ value: String?) -> JSONValue { value.map { .string($0) } ?? .null }
    return switch self {
    case .mounted(let place, let viewer): .array([.string("mounted"), text(place), text(viewer)])
    case .swap: .array([.string("swap")])
    case .holder(let name, let use): .array([.string("holder"), text(name), text(use)])
    case .kernel(let name, let use): .array([.string("kernel"), text(name), text(use)])
    case .opened(let process, let name):
      .array([.string("opened"), text(name), .integer(Int64(process))])
    case .mapped(let process, let name):
      .array([.string("mapped"), text(name), .integer(Int64(process))])
    case .claimed: .array([.string("claimed")])
    case .held: .array([.string("held")])
    }
  }

  /// Reads ``json``; nil for null, which stands for no use.
  ///
  /// What cannot be understood is a use: better one too many than a device pulled away.
  init?(_ json: JSONValue) {
    if json == .null { return nil }
    let parts = json.array ?? []
    func part(_ index: Int) -> JSONValue? { parts.indices.contains(index) ? parts[index] : nil }
    let name = part(1)?.string ?? ""
    let process = part(2)?.integer.flatMap { Int32(exactly: $0) } ?? 0
    switch part(0)?.string {
    case "mounted": self = .mounted(name, namespace: part(2)?.string)
    case "swap": self = .swap
    case "holder": self = .holder(name, use: part(2)?.string)
    case "kernel": self = .kernel(name, use: part(2)?.string)
    case "opened": self = .opened(process: process, name: name)
    case "mapped": self = .mapped(process: process, name: name)
    case "claimed": self = .claimed
    default: self = .held
    }
  }
}
