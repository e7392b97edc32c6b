import CPlatform
import Glibc

/// The clients of the control socket, served side by side: none waits for another.
struct ControlClients: ~Copyable {
  /// More than commands that are typed or run by scripts ever need; each costs a descriptor.
  static let limit = 32
  /// After a client could not be accepted, for want of descriptors most likely, the next try waits: the
  /// listener stays readable meanwhile.
  static let pause = 0.1

  private let listener: Int32
  private let seconds: Double
  private var connections: [ControlConnection] = []
  private var nextAccept = Deadline(seconds: 0)

  /// Takes over a listening socket, or -1 for none.
  ///
  /// A client may take `seconds` over its request, and over taking the reply.
  init(listener: Int32, seconds: Double = 5) {
    self.listener = listener
    self.seconds = seconds
  }

  deinit { if listener >= 0 { close(listener) } }

  var count: Int { connections.count }

  // MARK: Waiting

  /// What to wait for, the listener first.
  var pollEntries: [pollfd] {
    let accepting = nextAccept.hasPassed ? listener : -1
    return [pollfd(fd: accepting, events: Int16(POLLIN), revents: 0)]
      + connections.map(\.pollEntry)
  }

  /// The milliseconds after which ``serve(_:)`` has something to do; nil for no limit.
  var milliseconds: Int32? {
    let pause = nextAccept.hasPassed ? nil : nextAccept.milliseconds
    return (connections.map(\.milliseconds) + [pause].compactMap { $0 }).min()
  }

  // MARK: Serving

  /// Goes on with every client that is ready.
  ///
  /// - Parameter entries: ``pollEntries``, after poll(2).
  /// - Returns: The requests that are whole now, each with where its reply goes.
  mutating func serve(_ entries: [pollfd]) -> [(ControlRequest, ControlConnection)] {
    var requests: [(ControlRequest, ControlConnection)] = []
    for (connection, entry) in zip(connections, entries.dropFirst()) where entry.revents != 0 {
      switch connection.state {
      case .reading:
        if let request = connection.takeInput() { requests.append((request, connection)) }
      case .writing: connection.sendMore()
      case .working where entry.revents == Int16(POLLOUT): connection.sendMore()
      case .working where entry.revents == Int16(POLLIN): connection.takeCancellation()
      // Its client has gone. What has begun for it goes on, but for a job.
      case .working, .ended: connection.drop()
      }
    }
    for connection in connections { connection.check() }
    connections.removeAll { $0.state == .ended }
    if let entry = entries.first, entry.revents != 0 { accept() }
    return requests
  }

  private mutating func accept() {
    let descriptor = qublk_unix_accept(listener)
    guard descriptor >= 0 else {
      nextAccept = Deadline(seconds: Self.pause)
      return
    }
    if connections.count >= Self.limit {
      // The oldest that has asked for nothing yet, or does not take its reply.
      let index =
        connections.firstIndex { $0.state == .reading }
        ?? connections.firstIndex { $0.state == .writing }
      guard let index else {
        close(descriptor)
        return
      }
      connections.remove(at: index).drop()
    }
    connections.append(ControlConnection(descriptor: descriptor, seconds: seconds))
  }

  /// Sends replies that are on their way, before the daemon ends; takes nothing new.
  mutating func drain() {
    for connection in connections where connection.state == .working { connection.check() }
    connections.removeAll { $0.state != .writing }
    while !connections.isEmpty {
      var entries = connections.map(\.pollEntry)
      _ = unsafe poll(&entries, nfds_t(entries.count), connections.map(\.milliseconds).min() ?? 0)
      for connection in connections {
        connection.sendMore()
        connection.check()
      }
      connections.removeAll { $0.state == .ended }
    }
  }
}
