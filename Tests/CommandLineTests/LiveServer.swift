import CPlatform
import DiskImages
import Glibc
import JSON
import QCOW2Engine
import Synchronization
import TestTools
import Testing
import Uring

@testable import Daemon

/// A daemon's socket and its jobs on an image whose mapping has 16384 ranges.
final class LiveServer {
  static let ranges = 16384
  let directory: TemporaryDirectory
  let image: String
  let socket: String
  let disk: any OpenDisk
  let host: LiveHost
  var clients: ControlClients
  private var isClosed = false

  /// Makes an image by qemu-img's `options` and opens it when `prepare` has had it.
  ///
  /// Clients may take so many `seconds`.
  init(
    seconds: Double = 60, format: DiskFormat = .qcow2, options: String = "cluster_size=4096",
    prepare: ((String) throws -> Void)? = nil
  ) throws {
    directory = try TemporaryDirectory()
    image = directory.path + "/a.qcow2"
    socket = directory.path + "/control"
    try Self.make(image, options, directory)
    try prepare?(image)
    var opening = DiskImageOptions(path: image)
    opening.engine.workers = LiveGuest.writers
    disk = try format.openBlocking(opening)
    host = try LiveHost(disk, path: image)
    let listener = qublk_unix_listen(socket)
    try #require(listener >= 0)
    clients = ControlClients(listener: listener, seconds: seconds)
  }

  deinit { try? close() }

  /// The device ends, with all its jobs.
  func close() throws {
    host.finish()
    if isClosed { return }
    isClosed = true
    try disk.closeBlocking()
  }

  /// Every other 4 KiB of the disk has data.
  private static func make(
    _ image: String, _ options: String, _ directory: TemporaryDirectory
  ) throws {
    let block = [UInt8](repeating: 1, count: 4096)
    var bytes: [UInt8] = []
    for _ in 0..<ranges / 2 { bytes += block + [UInt8](repeating: 0, count: 4096) }
    let raw = try directory.file("raw", bytes)
    let made = try run(
      "qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-S", "4k", "-o", options, raw, image)
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
  ///
  /// After so many seconds the client does not want its job any more.
  func ask(
    _ request: ControlRequest, cancelledAfter patience: Double = .infinity
  ) throws -> (ControlClient.Answer, [ControlMessage]) {
    let end = now() + patience
    let result = Mutex<(ControlClient.Answer, [ControlMessage])?>(nil)
    let socket = socket
    let thread = try WorkerThread(name: "client") {
      var events: [ControlMessage] = []
      let answer = ControlClient.ask(
        request, socket: socket, isCancelled: { now() >= end }
      ) { events.append($0) }
      result.withLock { $0 = (answer, events) }
    }
    serve { result.withLock { $0 != nil } }
    thread.join()
    return try #require(result.withLock { $0 })
  }

  var running: Int { host.list.array?.count ?? 0 }

  /// Asks for a job that ends well.
  @discardableResult
  func mustRun(_ name: String, _ arguments: String = "{}") throws -> JSONValue {
    let (answer, _) = try ask(.job(name, JSONParser.parse(arguments)))
    guard case .result(let value) = answer else { throw LiveFailure(job: name, answer: answer) }
    return value
  }

  var engine: Image { get throws { try #require(disk as? DiskImage).engine } }
}

/// A job that should have ended well.
struct LiveFailure: Error {
  let job: String
  let answer: ControlClient.Answer
}
