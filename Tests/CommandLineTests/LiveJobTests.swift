import CPlatform
import DiskImages
import Glibc
import ImageJobs
import JSON
import QCOW2Tools
import Synchronization
import TestTools
import Testing
import Uring

@testable import Daemon

/// Jobs that a daemon runs for its clients, without a device.
@Suite(.enabled(if: hasQEMU, "needs qemu-img")) struct LiveJobTests {
  /// A daemon's socket and its jobs on an image whose mapping has 16384 ranges.
  private final class Server {
    static let ranges = 16384
    let directory: TemporaryDirectory
    let image: String
    let socket: String
    let disk: any OpenDisk
    let host: LiveHost
    var clients: ControlClients

    init(seconds: Double = 60, format: DiskFormat = .qcow2) throws {
      directory = try TemporaryDirectory()
      image = directory.path + "/a.qcow2"
      socket = directory.path + "/control"
      try Self.make(image, directory)
      disk = try format.openBlocking(DiskImageOptions(path: image))
      host = try LiveHost(disk, path: image)
      let listener = qublk_unix_listen(socket)
      try #require(listener >= 0)
      clients = ControlClients(listener: listener, seconds: seconds)
    }

    deinit {
      host.finish()
      try? disk.closeBlocking()
    }

    /// Every other 4 KiB of the disk has data.
    private static func make(_ image: String, _ directory: TemporaryDirectory) throws {
      let block = [UInt8](repeating: 1, count: 4096)
      var bytes: [UInt8] = []
      for _ in 0..<ranges / 2 { bytes += block + [UInt8](repeating: 0, count: 4096) }
      let raw = try directory.file("raw", bytes)
      let made = try run(
        "qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-S", "4k", "-o", "cluster_size=4096",
        raw,
        image)
      try #require(made.status == 0, "\(made.errors)")
    }

    func connect(_ request: ControlRequest) throws -> Int32 {
      let client = qublk_unix_connect(socket)
      try #require(client >= 0)
      let line = request.line + "\n"
      try #require(write(client, line, line.utf8.count) == line.utf8.count)
      return client
    }

    /// Serves as the control thread does, until `isOver` or for 20 seconds.
    func serve(until isOver: () -> Bool, sourceLocation: SourceLocation = #_sourceLocation) {
      let end = now() + 20
      while !isOver() {
        guard now() < end else {
          Issue.record("not in 20 s", sourceLocation: sourceLocation)
          return
        }
        var entries = [pollfd(fd: host.descriptor, events: Int16(POLLIN), revents: 0)]
        entries += clients.pollEntries
        poll(&entries, nfds_t(entries.count), min(clients.milliseconds ?? 10, 10))
        if entries[0].revents != 0 { host.noteNews() }
        for (request, connection) in clients.serve(Array(entries.dropFirst())) {
          answer(request, connection)
        }
      }
    }

    private func answer(_ request: ControlRequest, _ connection: ControlConnection) {
      guard case .job(let name, let arguments) = request else {
        return connection.reply(.result(host.list))
      }
      do throws(ControlError) { connection.follow(try host.start(name, arguments)) } catch {
        connection.reply(.error(error))
      }
    }

    /// Asks as a command does, and serves meanwhile.
    func ask(_ request: ControlRequest) throws -> (ControlClient.Answer, [ControlMessage]) {
      let result = Mutex<(ControlClient.Answer, [ControlMessage])?>(nil)
      let socket = socket
      let thread = try WorkerThread(name: "client") {
        var events: [ControlMessage] = []
        let answer = ControlClient.ask(request, socket: socket) { events.append($0) }
        result.withLock { $0 = (answer, events) }
      }
      serve { result.withLock { $0 != nil } }
      thread.join()
      return try #require(result.withLock { $0 })
    }

    var running: Int { host.list.array?.count ?? 0 }
  }

  private static let map = ControlRequest.job("map", nil)

  private func error(_ answer: ControlClient.Answer) -> ControlError? {
    if case .error(let error) = answer { error } else { nil }
  }

  @Test func `a map is the same live and offline`() throws {
    let server = try Server()
    let (answer, events) = try server.ask(Self.map)
    #expect(answer == .result(.object([])))
    var items: [JSONValue] = []
    for case .items(let more) in events { items += more }
    let found = Mutex<[MapJob.Range]>([])
    var options = DiskImageOptions(path: server.image)
    options.locks = .none
    _ = try OfflineHost.run(
      MapJob(), on: .qcow2, options,
      JobContext(take: { item in found.withLock { $0.append(item) } }))
    #expect(items.compactMap { MapJob.Range(json: $0) } == found.withLock { $0 })
    #expect(items.count == Server.ranges)
  }

  @Test func `info is the same live and offline`() throws {
    let server = try Server()
    for format in ["human", "json"] {
      let offline = try qublk("info", "-U", "--output", format, server.image)
      let (answer, _) = try server.ask(.job("info", nil))
      guard case .result(let value) = answer, let report = ImageInfoReport(json: value) else {
        Issue.record("\(answer)")
        return
      }
      #expect((format == "json" ? report.jsonText : report.humanText) == offline.output)
    }
    let named = JSONValue.object([.init("filename", .string("x"))])
    guard case .result(let value) = try server.ask(.job("info", named)).0 else { return }
    #expect(value["filename"] == .string("x"))
  }

  @Test func `what cannot be done is refused by name`() throws {
    let server = try Server()
    let wrong = JSONValue.object([.init("x", .null), .init("start", .bool(true))])
    #expect(
      error(try server.ask(.job("map", wrong)).0)
        == ControlError(
          .arguments, "argument \"start\" is true, expected a number from 0 to \(UInt64.max)"))
    let unknown = JSONValue.object([.init("x", .null)])
    #expect(error(try server.ask(.job("map", unknown)).0)?.text == "unknown argument \"x\"")
    #expect(error(try server.ask(.job("info", .integer(1))).0)?.kind == .arguments)
  }

  @Test func `a job that needs another format fails`() throws {
    let server = try Server(format: .raw)
    #expect(
      error(try server.ask(.job("info", nil)).0)
        == ControlError(.job, "the disk is not a qcow2 image"))
  }

  @Test func `a client that takes nothing holds up its own job alone, and is let go of`() throws {
    let server = try Server(seconds: 1)
    let slow = try server.connect(Self.map)
    defer { close(slow) }
    server.serve { server.running == 1 }
    let begin = now()
    let (jobs, _) = try server.ask(.jobs)
    guard case .result(let list) = jobs else { return }
    #expect(list.array?.count == 1 && list.array?[0]["job"] == .string("map"))
    #expect(try server.ask(.job("info", nil)).0 != .nothing)
    #expect(now() - begin < 1, "others are answered at once")
    server.serve { server.clients.count == 0 && server.running == 0 }
    #expect(now() - begin < 10)
  }

  @Test func `closing the connection cancels the job`() throws {
    let server = try Server()
    let client = try server.connect(Self.map)
    server.serve { server.running == 1 }
    close(client)
    server.serve { server.clients.count == 0 && server.running == 0 }
  }

  @Test func `more jobs than the limit are refused`() throws {
    let server = try Server()
    let clients = try (0..<LiveHost.limit).map { _ in try server.connect(Self.map) }
    server.serve { server.running == LiveHost.limit }
    #expect(error(try server.ask(Self.map).0) == ControlError(.busy, "4 jobs run already"))
    for client in clients { close(client) }
    server.serve { server.running == 0 }
    #expect(try server.ask(.job("info", nil)).0 != .nothing)
  }

  @Test func `a device that ends ends its jobs, and their clients hear of it`() throws {
    let server = try Server()
    let client = try server.connect(Self.map)
    defer { close(client) }
    server.serve { server.running == 1 }
    server.host.finish()
    #expect(server.running == 0)
    #expect(error(try server.ask(Self.map).0)?.kind == .gone)
    var bytes: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 65536)
    server.serve {
      let count = recv(client, &chunk, chunk.count, Int32(MSG_DONTWAIT))
      if count > 0 { bytes += chunk[..<count] }
      return count == 0
    }
    let last = bytes.split(separator: UInt8(ascii: "\n")).last.flatMap {
      ControlMessage(parsing: $0)
    }
    #expect(last == .error(ControlError(.cancelled, "cancelled")))
  }
}
