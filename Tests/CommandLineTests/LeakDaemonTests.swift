import BlockCore
import DiskImages
import Glibc
import ImageJobs
import JSON
import QCOW2Engine
import Synchronization
import TestTools
import Testing
import Uring

@testable import Daemon

/// What a session that died has left reserved goes back while a device serves.
@Suite(.enabled(if: hasQEMU, "needs qemu-img"), .serialized) struct LeakDaemonTests {
  /// Leaks so many clusters behind the end of the file, which one refcount block counts.
  private static func leak(_ count: Int, _ image: String) throws {
    var editor = ImageEditor(try contents(image))
    let size = editor.clusterSize
    let first = (editor.bytes.count + size - 1) / size
    for cluster in first..<(first + count) {
      #expect(editor.get(editor.refcountTable + cluster / (size / 2) * 8, 8) != 0)
      let block = Int(editor.get(editor.refcountTable + cluster / (size / 2) * 8, 8))
      editor.set(block + cluster % (size / 2) * 2, 2, 1)
    }
    editor.bytes += [UInt8](
      repeating: 0, count: (first + count) * size - editor.bytes.count)
    try write(editor.bytes, to: image)
  }

  private static func leaks(_ image: String) throws -> Int64 {
    let result = try run("qemu-img", "check", "--output=json", image)
    let json = try #require(JSONParser.parse(result.output))
    #expect(json["corruptions"] == nil && json["check-errors"]?.integer == 0)
    return json["leaks"]?.integer ?? 0
  }

  private static func waitUntil(_ seconds: Double = 20, _ isOver: () -> Bool) {
    let end = now() + seconds
    while !isOver(), now() < end { usleep(2000) }
    #expect(isOver(), "not in time")
  }

  @Test func `leaks go back under a guest, and the image is clean afterwards`() throws {
    let server = try LiveServer(options: "cluster_size=4096") { try Self.leak(100, $0) }
    let guest = try LiveGuest(try server.engine)
    let isSettled = Atomic(false)
    server.host.returnLeaks(of: "test", "a test") {
      isSettled.store(true, ordering: .sequentiallyConsistent)
    }
    Self.waitUntil { isSettled.load(ordering: .sequentiallyConsistent) }
    guest.goOn(writes: 20)
    let done = guest.done
    guest.stop()
    let started = guest.started
    let statistics = try server.engine.statistics
    #expect(statistics.leaks == .done)
    #expect(statistics.leaksReturned == 100)
    try server.close()
    #expect(try Self.leaks(server.image) == 0)
    let raw = server.directory.path + "/raw.copy"
    #expect(try run("qemu-img", "convert", "-O", "raw", server.image, raw).status == 0)
    #expect(LiveGuest.problem(try contents(raw), between: done, started) == nil)
  }

  @Test func `a device that ends at once has its leaks returned, or keeps them`() throws {
    for _ in 0..<3 {
      let server = try LiveServer(options: "cluster_size=4096") { try Self.leak(30, $0) }
      let isSettled = Atomic(false)
      server.host.returnLeaks(of: "test", "a test") {
        isSettled.store(true, ordering: .sequentiallyConsistent)
      }
      let start = now()
      try server.close()
      #expect(now() - start < 5)
      let left = try Self.leaks(server.image)
      #expect(left == (isSettled.load(ordering: .sequentiallyConsistent) ? 0 : 30))
    }
  }

  @Test func `a job that is cancelled leaves an image that is whole`() throws {
    let server = try LiveServer(options: "cluster_size=4096") { try Self.leak(30, $0) }
    let cancellation = JobCancellation()
    let disk = server.disk
    let start = now()
    let thread = try WorkerThread(name: "test") {
      let context = JobContext<NoValue>(cancellation: cancellation)
      do throws(JobError) {
        _ = try JobLoop.run { _ async throws(JobError) in
          try await LeakReturnJob(LeakPace(bytesPerSecond: 1 << 10)).run(on: disk, context)
        }
        Issue.record("it was not cancelled")
      } catch {
        if case .cancelled = error { return }
        Issue.record("\(error.message)")
      }
    }
    usleep(100_000)
    cancellation.cancel()
    thread.join()
    #expect(now() - start < 3)
    #expect(try server.engine.statistics.leaks == .left)
    try server.close()
    #expect(try Self.leaks(server.image) == 30)
  }
}

/// Records of images in use.
@Suite struct InUseRecordTests {
  private static func subject(_ path: String, inode: UInt64 = 7) -> InUseRecord.Subject {
    InUseRecord.Subject(path: path, device: 1, inode: inode, identity: "")
  }

  private static func record(
    _ root: String, _ subject: InUseRecord.Subject, boot: String = "now"
  ) throws -> InUseRecord { try InUseRecord(of: subject, root: root, boot: boot) }

  @Test func `a record goes when its image is closed well, and only then`() throws {
    let directory = try TemporaryDirectory()
    let root = directory.path + "/var/in-use"
    let image = Self.subject("/images/a")
    let first = try Self.record(root, image)
    #expect(first.found == nil)
    first.end(isClean: false)
    #expect(try FileNames(root).all == [InUseRecord.name("/images/a")])
    let second = try Self.record(root, image)
    #expect(second.found == .daemon)
    // Its leaks are still there.
    second.end(isClean: true)
    let third = try Self.record(root, image, boot: "later")
    #expect(third.found == .machine)
    third.noteSettled()
    third.end(isClean: true)
    #expect(try FileNames(root).all.isEmpty)
    #expect(try Self.record(root, image).found == nil)
  }

  @Test func `an image is known by its path, or by device and inode`() throws {
    let directory = try TemporaryDirectory()
    let root = directory.path + "/in-use"
    _ = try Self.record(root, Self.subject("/images/a"))
    #expect(try Self.record(root, Self.subject("/images/other", inode: 8)).found == nil)
    let moved = try Self.record(root, Self.subject("/images/b"))
    #expect(moved.found == .daemon)
    #expect(
      Set(try FileNames(root).all) == [
        InUseRecord.name("/images/b"), InUseRecord.name("/images/other"),
      ])
    #expect(try Self.record(root, Self.subject("/images/b", inode: 9)).found == .daemon)
  }

  @Test func `a logical volume is known by its identity, whatever number it has`() throws {
    let directory = try TemporaryDirectory()
    func volume(_ path: String, _ identity: String) -> InUseRecord.Subject {
      InUseRecord.Subject(path: path, device: 5, inode: 9, identity: identity)
    }
    _ = try Self.record(directory.path, volume("/dev/dm-3", "LVM-x"))
    #expect(try Self.record(directory.path, volume("/dev/vg/x", "LVM-x")).found == .daemon)
    #expect(try Self.record(directory.path, volume("/dev/vg/y", "LVM-y")).found == nil)
  }

  @Test func `a withdrawn record is as it was found`() throws {
    let directory = try TemporaryDirectory()
    let image = Self.subject("/images/a")
    try Self.record(directory.path, image).withdraw()
    #expect(try FileNames(directory.path).all.isEmpty)
    _ = try Self.record(directory.path, image)
    try Self.record(directory.path, image).withdraw()
    #expect(try Self.record(directory.path, image).found == .daemon)
  }

  @Test func `hostile records do no harm`() throws {
    let directory = try TemporaryDirectory()
    let image = Self.subject("/images/a")
    let place = directory.path + "/" + InUseRecord.name("/images/a")
    for text in ["", "{", "[]", "{\"image\":7}", String(repeating: "[", count: 1 << 20)] {
      try write(Array(text.utf8), to: place)
      #expect(try Self.record(directory.path, image).found == nil)
    }
    try write(Array("{\"image\":\"/images/a\"}".utf8), to: place)
    #expect(try Self.record(directory.path, image).found == .machine)
    #expect(unlink(place) == 0)
    // Whoever opens it for reading would wait for a writer.
    #expect(mkfifo(place, 0o600) == 0)
    #expect(try Self.record(directory.path, image).found == nil)
    #expect(unlink(place) == 0)
    let victim = directory.path + "/victim"
    try write(Array("kept".utf8), to: victim)
    #expect(symlink(victim, place) == 0)
    #expect(try Self.record(directory.path, image).found == nil)
    #expect(try contents(victim) == Array("kept".utf8))
  }

  @Test func `where no record can be made, that is said and nothing else`() throws {
    let directory = try TemporaryDirectory()
    let file = directory.path + "/file"
    try write([], to: file)
    #expect(throws: Errno.self) { try Self.record(file + "/in-use", Self.subject("/a")) }
  }
}

private struct FileNames {
  let all: [String]

  init(_ directory: String) throws {
    let listing = try #require(opendir(directory))
    defer { closedir(listing) }
    var names: [String] = []
    while let entry = readdir(listing) {
      let name = withUnsafePointer(to: &entry.pointee.d_name) {
        $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
      }
      if name != ".", name != ".." { names.append(name) }
    }
    all = names.sorted()
  }
}
