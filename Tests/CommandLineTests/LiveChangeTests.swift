import DiskImages
import Glibc
import ImageJobs
import JSON
import QCOW2Engine
import QCOW2Tools
import Synchronization
import TestTools
import Testing
import Uring

@testable import Daemon

/// Jobs that change an image while a guest writes to it.
@Suite(.enabled(if: hasQEMU, "needs qemu-img"), .serialized) struct LiveChangeTests {
  private static let create = #"{"name": "s"}"#

  /// The image is sound, with no leak.
  private func expectSound(_ server: LiveServer, _ note: String = "") throws {
    let outcome = try run("qemu-img", "check", server.image)
    #expect(outcome.status == 0, "\(note): \(outcome.output)\(outcome.errors)")
  }

  private func names(_ server: LiveServer) throws -> [String] {
    try server.mustRun("snapshot-list").array?.compactMap { $0["name"]?.string } ?? []
  }

  private func bitmaps(_ image: String) throws -> [String] {
    let info = JSONParser.parse(try mustRun("qemu-img", "info", "-U", "--output=json", image))
    return info?["format-specific"]?["data"]?["bitmaps"]?.array?
      .compactMap { $0["name"]?.string } ?? []
  }

  // MARK: Under load

  @Test(
    "Snapshots taken and deleted under load are the disk at one moment; bitmaps come and go",
    arguments: ["cluster_size=4096", "cluster_size=65536", "compat=0.10,cluster_size=4096"])
  func underLoad(options: String) throws {
    let server = try LiveServer(options: options)
    let guest = try LiveGuest(try server.engine)
    let copy = server.directory.path + "/copy"
    let hasBitmaps = !options.contains("compat")
    for round in 1...6 {
      let before = guest.done
      try server.mustRun("snapshot-create", #"{"name": "s\#(round)"}"#)
      let after = guest.started
      if hasBitmaps { try server.mustRun("bitmap", Self.bitmapSteps(round)) }
      guest.goOn(writes: 40)
      try mustRun("qemu-img", "convert", "-U", "-l", "s\(round)", "-O", "raw", server.image, copy)
      let problem = LiveGuest.problem(try contents(copy), between: before, after)
      #expect(problem == nil, "snapshot \(round)")
      if round > 2 { try server.mustRun("snapshot-delete", #"{"name": "s\#(round - 2)"}"#) }
    }
    #expect(try names(server) == ["s5", "s6"])
    guest.stop()
    let (last, pause) = (guest.done, try server.engine.statistics.longestPause)
    print("live, \(options): longest pause \(Double(pause) / 1e6) ms")
    try server.close()
    try expectSound(server)
    try mustRun("qemu-img", "convert", "-O", "raw", server.image, copy)
    let problem = LiveGuest.problem(try contents(copy), between: last, last)
    #expect(problem == nil)
    #expect(try bitmaps(server.image) == (hasBitmaps ? ["all", "some"] : []))
  }

  /// A bitmap "all", and one that comes, is merged into it, is cleared and goes.
  private static func bitmapSteps(_ round: Int) -> String {
    switch round % 4 {
    case 1 where round == 1: #"{"bitmap": "all", "actions": [{"action": "add"}]}"#
    case 1, 2:
      #"{"bitmap": "b\#(round)", "actions": [{"action": "add", "granularity": 65536}, {"action": "remove"}]}"#
    case 3: #"{"bitmap": "some", "actions": [{"action": "add"}, {"action": "clear"}]}"#
    default:
      #"{"bitmap": "all", "actions": [{"action": "merge", "source": "some"}, {"action": "disable"}, {"action": "enable"}]}"#
    }
  }

  // MARK: Cancelled

  @Test("A snapshot that is cancelled at any moment leaves the image whole")
  func cancelledSnapshots() throws {
    let server = try LiveServer()
    let guest = try LiveGuest(try server.engine)
    var (cancelled, names) = (0, [String]())
    for round in 0..<24 {
      let request = ControlRequest.job(
        "snapshot-create", .object([.init("name", .string("s\(round)"))]))
      // The first ones at once.
      switch try server.ask(request, cancelledAfter: Double(max(round - 3, 0)) * 0.0005).0 {
      case .result: names.append("s\(round)")
      case .error(let error):
        #expect(error == ControlError(.cancelled, "cancelled"))
        cancelled += 1
      case let other: Issue.record("\(other)")
      }
      guest.goOn(writes: 4)
    }
    print("live: \(cancelled) snapshots cancelled, \(names.count) taken")
    #expect(cancelled >= 3, "those that were not wanted from the start")
    #expect(try self.names(server) == names)
    for name in names {
      // The deletion of a snapshot has no way back, and says so by its success.
      let request = ControlRequest.job("snapshot-delete", .object([.init("name", .string(name))]))
      let (answer, _) = try server.ask(request, cancelledAfter: 0.001)
      #expect(answer == .result(.object([])) || error(answer)?.kind == .cancelled)
    }
    guest.stop()
    try server.close()
    try expectSound(server)
  }

  @Test("Changes of bitmaps that are cancelled leave each bitmap there or not")
  func cancelledBitmaps() throws {
    let server = try LiveServer()
    let guest = try LiveGuest(try server.engine)
    let both = #"{"action": "add"}, {"action": "clear"}, {"action": "remove"}, "#
    let steps = String(repeating: both, count: 100).dropLast(2)
    var cancelled = 0
    for round in 0..<6 {
      let request = ControlRequest.job(
        "bitmap", JSONParser.parse(#"{"bitmap": "b", "actions": [\#(steps)]}"#))
      let (answer, _) = try server.ask(request, cancelledAfter: Double(round) * 0.01)
      if error(answer)?.kind == .cancelled { cancelled += 1 }
      if try bitmaps(server.image).contains("b") {
        try server.mustRun("bitmap", #"{"bitmap": "b", "actions": [{"action": "remove"}]}"#)
      }
    }
    #expect(cancelled > 0)
    guest.stop()
    try server.close()
    try expectSound(server)
    #expect(try bitmaps(server.image).isEmpty)
  }

  private func error(_ answer: ControlClient.Answer) -> ControlError? {
    if case .error(let error) = answer { error } else { nil }
  }

  @Test("A word behind a request that is no cancellation changes nothing")
  func anotherWord() throws {
    let server = try LiveServer()
    let words = [
      "x", #"{"version": 1, "request": "stop"}"#, #"{"version": 2, "request": "cancel"}"#,
    ]
    for word in words {
      let client = try server.connect(.job("map", nil))
      defer { Glibc.close(client) }
      let line = word + "\n"
      try #require(write(client, line, line.utf8.count) == line.utf8.count)
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
      #expect(last == .result(.object([])), "behind \(word)")
    }
  }

  // MARK: The device ends

  @Test(
    "A device that ends in the middle of a job has an image that is whole",
    arguments: [
      ("snapshot-create", #"{"name": "new"}"#), ("snapshot-delete", #"{"name": "old"}"#),
      ("bitmap", #"{"bitmap": "b", "actions": [{"action": "add"}, {"action": "remove"}]}"#),
      ("amend", #"{"lazy-refcounts": true}"#), ("check", "{}"),
    ])
  func theDeviceEnds(job: String, arguments: String) throws {
    for delay in 0..<6 {
      let server = try LiveServer()
      try server.mustRun("snapshot-create", #"{"name": "old"}"#)
      let guest = try LiveGuest(try server.engine)
      let client = try server.connect(.job(job, JSONParser.parse(arguments)))
      defer { Glibc.close(client) }
      server.serve { server.running == 1 || delay > 3 }
      usleep(UInt32(delay * 400))
      server.host.finish()
      guest.stop()
      try server.close()
      try expectSound(server, "\(job) after \(delay)")
    }
  }

  // MARK: amend

  @Test("amend turns lazy refcounts on and off beside the guest, and refuses what cannot change")
  func amendments() throws {
    let server = try LiveServer()
    let guest = try LiveGuest(try server.engine)
    func isLazy() throws -> Bool? {
      try server.mustRun("info")["format-specific"]?["data"]?["lazy-refcounts"]?.bool
    }
    for _ in 0..<3 {
      try server.mustRun("amend", #"{"lazy-refcounts": true}"#)
      #expect(try isLazy() == true)
      guest.goOn(writes: 40)
      try server.mustRun("snapshot-create", Self.create)
      guest.goOn(writes: 10)
      try server.mustRun("amend", #"{"lazy-refcounts": false, "version": 3, "refcount-bits": 16}"#)
      #expect(try isLazy() == false)
      guest.goOn(writes: 10)
      // With lazy refcounts off, the host file has them: the image can be checked again.
      try server.mustRun("check")
      try server.mustRun("snapshot-delete", Self.create)
    }
    try server.mustRun("amend", #"{"lazy-refcounts": true, "trial": true}"#)
    #expect(try isLazy() == false, "a trial changes nothing")
    for (arguments, text) in [
      (#"{"version": 2, "lazy-refcounts": true}"#, "compat=1.1"),
      (
        #"{"version": 2, "refcount-bits": 16}"#,
        "compat cannot change while a device shows the disk"
      ),
      (#"{"refcount-bits": 64}"#, "refcount_bits cannot change while"),
      (#"{"backing-file": "x"}"#, "qublk rebase"),
      (#"{"data-file": "x"}"#, "external data file"),
      (#"{"version": 4}"#, "expected 2 or 3"), (#"{"refcount-bits": 3}"#, "1, 2, 4, 8"),
    ] {
      let (answer, _) = try server.ask(.job("amend", JSONParser.parse(arguments)))
      let found = error(answer)?.text ?? "\(answer)"
      #expect(found.contains(text), "\(arguments)")
    }
    guest.stop()
    try server.close()
    try expectSound(server)
  }

  // MARK: check

  /// Gives the image a cluster that nothing refers to, by the specification.
  private func leak(_ image: String) throws {
    let descriptor = open(image, O_RDWR)
    defer { Glibc.close(descriptor) }
    func number(_ offset: Int, _ count: Int) -> Int {
      var bytes = [UInt8](repeating: 0, count: count)
      #expect(pread(descriptor, &bytes, count, offset) == count)
      return bytes.reduce(0) { $0 << 8 | Int($1) }
    }
    let cluster = 1 << number(20, 4)
    let block = number(number(48, 8), 8)
    let index = (Int(lseek(descriptor, 0, SEEK_END)) + cluster - 1) / cluster
    try #require(ftruncate(descriptor, (index + 1) * cluster) == 0)
    try #require(pwrite(descriptor, [0, 1] as [UInt8], 2, block + 2 * index) == 2)
  }

  private func check(_ server: LiveServer, patience: UInt64) throws -> (CheckResult, [JobMessage]) {
    var job = LiveCheckJob()
    job.patience = patience
    let messages = Mutex<[JobMessage]>([])
    let context = JobContext<NoValue>(tell: { message in messages.withLock { $0.append(message) } })
    let result = Mutex<Result<CheckResult, JobError>?>(nil)
    let (disk, wanted) = (server.disk, job)
    let thread = try WorkerThread(name: "check") {
      let found: Result<CheckResult, JobError>
      do throws(JobError) {
        found = .success(
          try JobLoop.run { _ async throws(JobError) in try await wanted.run(on: disk, context) })
      } catch { found = .failure(error) }
      result.withLock { $0 = found }
    }
    thread.join()
    return (try #require(result.withLock { $0 }).get(), messages.withLock { $0 })
  }

  @Test(
    "check finds what lasts and nothing that the guest does, whether requests can wait for it or not",
    arguments: [UInt64(0), 30_000_000])
  func checks(patience: UInt64) throws {
    for damaged in [false, true] {
      let server = try LiveServer(options: "cluster_size=65536") { image in
        if damaged { try leak(image) }
      }
      let guest = try LiveGuest(try server.engine)
      for round in 0..<2 {
        try server.mustRun("snapshot-create", Self.create)
        let (result, messages) = try check(server, patience: patience)
        #expect(result.corruptions == 0 && result.checkErrors == 0)
        #expect(result.leaks == (damaged ? 1 : 0), "\(messages)")
        #expect(messages.isEmpty == !damaged)
        try server.mustRun("snapshot-delete", Self.create)
        guest.goOn(writes: 20 + round)
      }
      guest.stop()
      let pause = Double(try server.engine.statistics.longestPause) / 1e6
      print("live check, patience \(patience / 1_000_000) ms: longest pause \(pause) ms")
    }
  }
}
