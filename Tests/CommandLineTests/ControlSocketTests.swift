import CPlatform
import Glibc
import JSON
import TestTools
import Testing

@testable import Daemon

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

    /// A client that has asked for something.
    func client(_ request: ControlRequest) throws -> Int32 {
      let client = try client()
      try send(request.line + "\n", client)
      return client
    }

    func send(_ text: String, _ client: Int32) throws {
      try #require(write(client, text, text.utf8.count) == text.utf8.count)
    }
  }

  /// Serves clients until `isOver`, or for `limit` seconds.
  private func serve(
    _ clients: inout ControlClients, limit: Double = 20,
    until isOver: (_ count: Int, [ControlRequest]) -> Bool,
    answer: (ControlRequest, ControlConnection) -> Void = { _, _ in },
    sourceLocation: SourceLocation = #_sourceLocation
  ) {
    let end = now() + limit
    var seen: [ControlRequest] = []
    while !isOver(clients.count, seen) {
      guard now() < end else {
        Issue.record("not in \(limit) s", sourceLocation: sourceLocation)
        return
      }
      var entries = clients.pollEntries
      poll(&entries, nfds_t(entries.count), min(clients.milliseconds ?? 20, 20))
      for (request, connection) in clients.serve(entries) {
        seen.append(request)
        answer(request, connection)
      }
    }
  }

  /// What a daemon sent before the connection ended; a message that cannot be read is left out.
  private func received(_ client: Int32) -> [ControlMessage] {
    var bytes: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 65536)
    while true {
      let count = read(client, &chunk, chunk.count)
      guard count > 0 else { break }
      bytes += chunk[..<count]
    }
    return bytes.split(separator: UInt8(ascii: "\n")).compactMap { ControlMessage(parsing: $0) }
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

  @Test func `a client that cannot be accepted is not tried again at once`() {
    // As without room for one more descriptor.
    var clients = ControlClients(listener: -1)
    var entries = clients.pollEntries
    entries[0].revents = Int16(POLLIN)
    _ = clients.serve(entries)
    #expect(clients.count == 0)
    #expect((1...101).contains(clients.milliseconds ?? -1))
  }

  @Test func `silent clients do not delay another`() throws {
    let socket = try Socket()
    var clients = ControlClients(listener: dup(socket.listener), seconds: 60)
    let silent = try (0..<20).map { _ in try socket.client() }
    defer { for client in silent { close(client) } }
    let client = try socket.client(.stats)
    defer { close(client) }
    serve(&clients) { _, seen in
      seen == [.stats]
    } answer: { _, connection in
      connection.reply(.result(.string("x")))
    }
    serve(&clients) { count, _ in count == silent.count }
    #expect(received(client) == [.result(.string("x"))])
  }

  @Test func `of too many clients the oldest silent one is dropped`() throws {
    let socket = try Socket()
    var clients = ControlClients(listener: dup(socket.listener), seconds: 60)
    let worker = try socket.client(.stop(.ifUnused))
    serve(&clients) { _, seen in seen == [.stop(.ifUnused)] }
    let silent = try (1..<ControlClients.limit).map { _ in try socket.client() }
    serve(&clients) { count, _ in count == ControlClients.limit }
    let late = try socket.client()
    defer { for client in [worker, late] + silent.dropFirst() { close(client) } }
    try socket.send(ControlRequest.stats.line + "\n", late)
    serve(&clients) { _, seen in seen == [.stats] }
    #expect(clients.count == ControlClients.limit)
    var byte: UInt8 = 0
    let ended = read(silent[0], &byte, 1)
    #expect(ended == 0, "the oldest silent one")
    close(silent[0])
    for client in [silent[1], worker] {
      let count = recv(client, &byte, 1, Int32(MSG_DONTWAIT))
      #expect(count == -1, "the next silent one and the one that waits are still there")
    }
  }

  @Test(arguments: [true, false])
  func `a request that does not come whole ends after its time`(_ sends: Bool) throws {
    let socket = try Socket()
    var clients = ControlClients(listener: dup(socket.listener), seconds: 0.5)
    let client = try socket.client()
    if sends { repeatedly(100_000) { send(client, "x", 1, Int32(MSG_NOSIGNAL)) == 1 } }
    serve(&clients) { count, _ in count == 1 }
    serve(&clients) { count, _ in count == 0 }
    if !sends { close(client) }
  }

  @Test func `a reply that is taken slowly ends after its time`() throws {
    let socket = try Socket()
    var clients = ControlClients(listener: dup(socket.listener), seconds: 0.5)
    let client = try socket.client(.stats)
    let text = String(repeating: "x", count: 32 << 20)
    serve(&clients) { _, seen in
      seen == [.stats]
    } answer: { _, connection in
      connection.reply(.result(.string(text)))
    }
    repeatedly(50_000) {
      var bytes = [UInt8](repeating: 0, count: 65536)
      return read(client, &bytes, bytes.count) > 0
    }
    serve(&clients) { count, _ in count == 0 }
  }

  @Test(arguments: ["", "{", "{\"version\": 1, \"request\": \"stats\"}"])
  func `a request without an end is none`(_ text: String) throws {
    let socket = try Socket()
    var clients = ControlClients(listener: dup(socket.listener), seconds: 60)
    let client = try socket.client()
    try socket.send(text, client)
    serve(&clients) { count, _ in count == 1 }
    shutdown(client, Int32(SHUT_WR))
    serve(&clients) { count, seen in count == 0 && seen.isEmpty }
    close(client)
  }

  @Test(arguments: [
    ("", ControlError.Kind.malformed), ("stats", .malformed), ("[]", .malformed),
    ("{} {}", .malformed),
    ("{}", .version), ("{\"version\": 2, \"request\": 5}", .version),
    ("{\"version\": \"1\", \"request\": \"stats\"}", .version),
    ("{\"version\": 1}", .malformed), ("{\"version\": 1, \"request\": []}", .malformed),
    ("{\"version\": 1, \"request\": \"x\"}", .unknownRequest),
    ("{\"version\": 1, \"request\": \"format\"}", .unknownRequest),
    ("{\"version\": 1, \"request\": \"stats\", \"arguments\": []}", .arguments),
    ("{\"version\": 1, \"request\": \"stats\", \"arguments\": {\"x\": 1}}", .arguments),
    ("{\"version\": 1, \"request\": \"stop\", \"arguments\": {\"force\": 1}}", .arguments),
  ])
  func `what is no request is refused by name`(_ text: String, _ kind: ControlError.Kind) throws {
    try refused(text, kind)
  }

  @Test func `what is nested too deep or too long is refused`() throws {
    let start = "{\"version\": 1, \"request\": "
    try refused(start + String(repeating: "[", count: 60_000), .malformed)
    try refused(
      start + String(repeating: "[", count: 17) + String(repeating: "]", count: 17) + "}",
      .malformed)
    try refused(String(repeating: "x", count: 100_000), .malformed)
    try refused(
      start + "\"" + String(repeating: "x", count: ControlConnection.requestLimit) + "\"}",
      .malformed)
  }

  private func refused(_ text: String, _ kind: ControlError.Kind) throws {
    let socket = try Socket()
    var clients = ControlClients(listener: dup(socket.listener), seconds: 60)
    let client = try socket.client()
    let line = text + "\n"
    // More than the daemon takes may not get through.
    _ = send(client, line, line.utf8.count, Int32(MSG_DONTWAIT))
    serve(&clients) { count, _ in count == 1 }
    serve(&clients) { count, seen in count == 0 && seen.isEmpty }
    let messages = received(client)
    guard messages.count == 1, case .error(let error) = messages[0] else {
      Issue.record("\(messages)")
      return
    }
    #expect(error.kind == kind, "\(error.text)")
    #expect(!error.text.isEmpty)
  }

  @Test func `a refusal says what was wrong`() {
    func text(_ line: String) -> String {
      do throws(ControlError) {
        _ = try ControlRequest(parsing: line.utf8)
        return ""
      } catch { return error.text }
    }
    #expect(
      text("{\"version\": 7}") == "version 7 of the control protocol is not known, expected 1")
    #expect(text("{\"version\": 1, \"request\": \"fly\"}") == "unknown request \"fly\"")
    #expect(
      text("{\"version\": 1, \"request\": \"stop\", \"arguments\": {\"now\": true}}")
        == "stop: unknown argument \"now\"")
  }

  @Test func `a client that has gone does not end the daemon`() throws {
    signal(SIGPIPE, SIG_DFL)
    let socket = try Socket()
    var clients = ControlClients(listener: dup(socket.listener))
    let client = try socket.client(.stats)
    serve(&clients) { _, seen in
      seen == [.stats]
    } answer: { _, connection in
      close(client)
      connection.reply(.result(.string(String(repeating: "x", count: 1 << 20))))
    }
    serve(&clients) { count, _ in count == 0 }
  }

  @Test func `what a client that has given up asked for is not done`() throws {
    let socket = try Socket()
    var clients = ControlClients(listener: dup(socket.listener), seconds: 60)
    let client = try socket.client(.stop(.forced))
    close(client)
    serve(&clients) { count, _ in count == 1 }
    serve(&clients) { count, seen in count == 0 && seen.isEmpty }
  }

  @Test func `a client that has gone is noticed while it waits`() throws {
    let socket = try Socket()
    var clients = ControlClients(listener: dup(socket.listener), seconds: 60)
    let client = try socket.client(.stop(.ifUnused))
    serve(&clients) { _, seen in
      seen == [.stop(.ifUnused)]
    } answer: { _, connection in
      #expect(connection.hasClient)
      shutdown(client, Int32(SHUT_WR))
      #expect(connection.hasClient, "it says no more, and listens")
      close(client)
      #expect(!connection.hasClient)
    }
    serve(&clients) { count, _ in count == 0 }
  }

  // MARK: The commands' side

  @Test func `a client waits for as long as it is told to`() throws {
    let socket = try Socket()
    let listener = dup(socket.listener)
    guard case .error(let error) = ControlMessage.gone else { return }
    let gone = ControlClient.Answer.error(error)
    repeatedly(1) {
      var clients = ControlClients(listener: listener)
      let end = now() + 2.5
      var connections: [ControlConnection] = []
      while now() < end {
        var entries = clients.pollEntries
        poll(&entries, nfds_t(entries.count), min(clients.milliseconds ?? 20, 20))
        connections += clients.serve(entries).map(\.1)
      }
      for connection in connections { connection.reply(.gone) }
      clients.drain()
      return false
    }
    #expect(ControlClient.ask(.stop(.ifUnused), socket: socket.path, silence: 2) == gone)
  }

  @Test func `a daemon that says nothing is not waited for for ever`() throws {
    let socket = try Socket()
    let answer = ControlClient.ask(.stats, socket: socket.path, silence: 0.3)
    #expect(answer == .silent(process: getpid()))
  }

  @Test func `a daemon that is stopped is found out`() throws {
    let sleeper = try Subprocess("sleep", ["100"])
    let process = sleeper.process
    kill(process, SIGSTOP)
    #expect(wait(seconds: 10) { ProcessState(of: process).isStopped })
    #expect(ProcessState(of: process).text == "it is stopped (state T)")
    kill(process, SIGKILL)
    _ = sleeper.finish()
    // This thread runs; the first one, which the state is of, may wait.
    #expect(ProcessState(of: getpid()).letter.map("RS".contains) == true)
    #expect(ProcessState(of: 0).text == "it is gone")
  }

  @Test func `a daemon that is not there gives no answer`() throws {
    let socket = try Socket()
    #expect(ControlClient.ask(.stats, socket: socket.path + "x") == .nothing)
  }
}
