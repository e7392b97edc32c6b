import DiskImages
import Glibc
import ImageJobs
import JSON
import QCOW2Tools
import Synchronization
import TestTools
import Testing

@testable import Daemon

/// Jobs that a daemon runs for its clients, without a device.
@Suite(.enabled(if: hasQEMU, "needs qemu-img")) struct LiveJobTests {
  private static let map = ControlRequest.job("map", nil)

  private func error(_ answer: ControlClient.Answer) -> ControlError? {
    if case .error(let error) = answer { error } else { nil }
  }

  @Test func `a map is the same live and offline`() throws {
    let server = try LiveServer()
    let (answer, events) = try server.ask(Self.map)
    #expect(answer == .result(.object([])))
    var items: [JSONValue] = []
    for case .items(let more) in events { items += more }
    let found = Mutex<[MapRange]>([])
    var options = DiskImageOptions(path: server.image)
    options.locks = .none
    _ = try OfflineHost.run(
      MapJob(), on: .qcow2, options,
      JobContext(take: { item in found.withLock { $0.append(item) } }))
    #expect(items.compactMap { MapRange(json: $0) } == found.withLock { $0 })
    #expect(items.count == LiveServer.ranges)
  }

  @Test func `snapshots are taken, listed and deleted live`() throws {
    let server = try LiveServer()
    for number in 1...2 {
      let name = JSONValue.object([.init("name", .string("s\(number)"))])
      let (answer, _) = try server.ask(.job("snapshot-create", name))
      guard case .result(let value) = answer,
        let outcome = SnapshotCreateJob.Outcome(json: value)
      else {
        Issue.record("\(answer)")
        return
      }
      #expect(outcome.id == String(number))
      #expect(outcome.pauseMicroseconds < 50_000)
    }
    let arguments = JSONValue.object([.init("snapshot", .string("1"))])
    #expect(try server.ask(.job("snapshot-delete", arguments)).0 == .result(.object([])))
    guard case .result(let list) = try server.ask(.job("snapshot-list", nil)).0 else {
      Issue.record("no list")
      return
    }
    #expect(list.array?.compactMap { $0["name"]?.string } == ["s2"])
    // It needs a disk that nobody uses.
    #expect(
      error(try server.ask(.job("snapshot-apply", arguments)).0)?.kind == .unknownRequest)
  }

  @Test func `info is the same live and offline`() throws {
    let server = try LiveServer()
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
    let server = try LiveServer()
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
    let server = try LiveServer(format: .raw)
    let named = JSONValue.object([.init("name", .string("x"))])
    #expect(
      error(try server.ask(.job("snapshot-create", named)).0)
        == ControlError(.job, "the disk is not a qcow2 image"))
  }

  @Test func `a client that takes nothing holds up its own job alone, and is let go of`() throws {
    let server = try LiveServer(seconds: 1)
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
    let server = try LiveServer()
    let client = try server.connect(Self.map)
    server.serve { server.running == 1 }
    close(client)
    server.serve { server.clients.count == 0 && server.running == 0 }
  }

  @Test func `more jobs than the limit are refused`() throws {
    let server = try LiveServer()
    let clients = try (0..<LiveHost.limit).map { _ in try server.connect(Self.map) }
    server.serve { server.running == LiveHost.limit }
    #expect(error(try server.ask(Self.map).0) == ControlError(.busy, "4 jobs run already"))
    for client in clients { close(client) }
    server.serve { server.running == 0 }
    #expect(try server.ask(.job("info", nil)).0 != .nothing)
  }

  @Test func `a device that ends ends its jobs, and their clients hear of it`() throws {
    let server = try LiveServer()
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
