import CPlatform
import Glibc
import Testing

@testable import qublk

/// Clients that take their time, or are none.
@Suite struct ControlSocketTests {
  private final class Socket {
    let directory: TemporaryDirectory
    let path: String
    let listener: Int32

    init() throws {
      directory = try TemporaryDirectory()
      path = directory.path + "/control"
      listener = qublk_unix_listen(path)
      try #require(listener >= 0)
    }

    deinit { close(listener) }

    func client() throws -> Int32 {
      let descriptor = qublk_unix_connect(path)
      try #require(descriptor >= 0)
      return descriptor
    }
  }

  private func measure(_ body: () throws -> Void) rethrows -> Double {
    let start = now()
    try body()
    return now() - start
  }

  /// Runs `body` until it answers false, on a thread of its own.
  private func repeatedly(_ microseconds: UInt32, _ body: @escaping @Sendable () -> Bool) {
    final class Box: Sendable {
      let body: @Sendable () -> Bool
      let microseconds: UInt32
      init(_ body: @escaping @Sendable () -> Bool, _ microseconds: UInt32) {
        (self.body, self.microseconds) = (body, microseconds)
      }
    }
    var thread = pthread_t()
    let box = Unmanaged.passRetained(Box(body, microseconds)).toOpaque()
    pthread_create(
      &thread, nil,
      { argument in
        guard let argument else { return nil }
        let box = Unmanaged<Box>.fromOpaque(argument).takeRetainedValue()
        while box.body() { usleep(box.microseconds) }
        return nil
      }, box)
    pthread_detach(thread)
  }

  @Test func aClientThatCannotBeAcceptedIsNotTriedAgainAtOnce() {
    let time = measure {
      // As without room for one more descriptor.
      if ControlConnection(listener: -1) != nil { Issue.record("a connection of no listener") }
    }
    #expect(time >= Double(ControlConnection.pause) / 1e6)
  }

  @Test func aRequestThatComesByteByByteIsNotWaitedForForever() throws {
    let socket = try Socket()
    let client = try socket.client()
    repeatedly(100_000) { send(client, "x", 1, Int32(MSG_NOSIGNAL)) == 1 }
    let seconds = try measure {
      let connection = ControlConnection(listener: socket.listener, seconds: 0.5)
      let isNone = connection == nil
      try #require(isNone)
    }
    #expect((0.4...30).contains(seconds))
  }

  @Test func aClientThatSaysNothingIsNotWaitedForForever() throws {
    let socket = try Socket()
    let client = try socket.client()
    defer { close(client) }
    let seconds = try measure {
      let connection = ControlConnection(listener: socket.listener, seconds: 0.2)
      let isNone = connection == nil
      try #require(isNone)
    }
    #expect((0.1...30).contains(seconds))
  }

  @Test func aReplyThatIsTakenSlowlyIsNotWaitedForForever() throws {
    let socket = try Socket()
    let client = try socket.client()
    try #require(write(client, "stats\n", 6) == 6)
    let connection = ControlConnection(listener: socket.listener, seconds: 0.5)
    guard let connection else {
      Issue.record("no connection")
      return
    }
    #expect(connection.request == .stats)
    repeatedly(50_000) {
      var bytes = [UInt8](repeating: 0, count: 65536)
      return read(client, &bytes, bytes.count) > 0
    }
    let text = String(repeating: "x", count: 32 << 20)
    let start = now()
    connection.reply(.report(text))
    #expect((0.4...30).contains(now() - start))
  }

  @Test(arguments: ["", "\n", "stats", "STATS\n", "stats \n", "stop --force --now\n"])
  func whatIsNoRequestIsNoConnection(_ text: String) throws {
    let socket = try Socket()
    let client = try socket.client()
    try #require(write(client, text, text.utf8.count) == text.utf8.count)
    close(client)
    let isNone = ControlConnection(listener: socket.listener) == nil
    #expect(isNone)
  }

  @Test func aClientThatHasGoneDoesNotEndTheDaemon() throws {
    signal(SIGPIPE, SIG_IGN)
    let socket = try Socket()
    let client = try socket.client()
    try #require(write(client, "stats\n", 6) == 6)
    let connection = ControlConnection(listener: socket.listener)
    close(client)
    guard let connection else {
      Issue.record("no connection")
      return
    }
    connection.reply(.report(String(repeating: "x", count: 1 << 20)))
  }
}
