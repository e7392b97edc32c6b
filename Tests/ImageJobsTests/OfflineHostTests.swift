import BlockCore
import DiskImages
import Glibc
import ImageJobs
import JSON
import QCOW2Tools
import Synchronization
import TestTools
import Testing

/// Jobs on images that a command opens.
@Suite(.enabled(if: hasQEMU, "needs qemu-img")) struct OfflineHostTests {
  /// An image that goes away with the object: 1 MiB of data, then 3 MiB without.
  private final class Image {
    let path: String
    let directory: String

    init() throws {
      var template = Array("/var/tmp/qublk-jobs-XXXXXX\0".utf8CString)
      directory = String(cString: try #require(mkdtemp(&template)))
      path = directory + "/a.qcow2"
      try run("qemu-img", "create", "-q", "-f", "qcow2", path, "4M")
      try run("qemu-io", "-f", "qcow2", "-c", "write 0 1M", path)
    }

    deinit {
      unlink(path)
      rmdir(directory)
    }

    @discardableResult func run(_ program: String, _ arguments: String...) throws -> Outcome {
      let outcome = try Subprocess(program, arguments).finish(within: 30)
      try #require(outcome.status == 0, "\(outcome.errors)")
      return outcome
    }
  }

  private final class Told: Sendable {
    let messages = Mutex<[JobMessage]>([])
    var tell: @Sendable (JobMessage) -> Void {
      { message in self.messages.withLock { $0.append(message) } }
    }
  }

  @Test func `a map is without gaps and its neighbours differ`() throws {
    let image = try Image()
    let found = Mutex<[MapRange]>([])
    let context = JobContext<MapRange>(take: { range in found.withLock { $0.append(range) } })
    let options = DiskImageOptions(path: image.path)
    var own = MapJob()
    own.isOwnOnly = true
    _ = try OfflineHost.run(own, on: .qcow2, options, context)
    #expect(
      found.withLock { $0 } == [
        .init(start: 0, length: 1 << 20, isAllocated: true),
        .init(start: 1 << 20, length: 3 << 20, isAllocated: false),
      ])
    #expect(context.progress.snapshot == .init(done: 4 << 20, total: 4 << 20, unit: .bytes))
    found.withLock { $0 = [] }
    _ = try OfflineHost.run(
      MapJob(start: (1 << 20) - 512, length: 1024), on: .qcow2, options, context)
    #expect(found.withLock { $0 }.map(\.length) == [512, 512])
    found.withLock { $0 = [] }
    _ = try OfflineHost.run(MapJob(start: .max, length: .max), on: .qcow2, options, context)
    #expect(found.withLock { $0 }.isEmpty)
  }

  @Test func `a raw disk is one range`() throws {
    let image = try Image()
    let found = Mutex<[MapRange]>([])
    let length = try #require(UInt64(image.run("stat", "-c", "%s", image.path).output.dropLast()))
    var own = MapJob()
    own.isOwnOnly = true
    _ = try OfflineHost.run(
      own, on: .raw, DiskImageOptions(path: image.path),
      JobContext(take: { range in found.withLock { $0.append(range) } }))
    #expect(found.withLock { $0 } == [.init(start: 0, length: length & ~511, isAllocated: true)])
  }

  @Test func `a resize is there when the host returns, and the image is sound`() throws {
    let image = try Image()
    for size: UInt64 in [1 << 30, 64 << 10] {
      _ = try OfflineHost.run(
        ResizeJob(size: size), on: .qcow2, DiskImageOptions(path: image.path), JobContext())
      let info = try OfflineHost.run(InfoJob(), on: image.path, JobContext())
      #expect(info.json["virtual-size"] == .number(size))
      try image.run("qemu-img", "check", "-q", image.path)
    }
  }

  @Test func `a cancelled job ends with an error of its own and leaves the image`() throws {
    let image = try Image()
    let before = try image.run("cksum", image.path).output
    let context = JobContext<NoValue>()
    context.cancellation.cancel()
    do throws(JobError) {
      _ = try OfflineHost.run(
        ResizeJob(size: 1 << 30), on: .qcow2, DiskImageOptions(path: image.path), context)
      Issue.record("carried out")
    } catch {
      guard case .cancelled = error else {
        Issue.record("\(error.message)")
        return
      }
    }
    #expect(try image.run("cksum", image.path).output == before)
  }

  @Test func `a job that does not change the image opens it for reading`() throws {
    let image = try Image()
    chmod(image.path, 0o444)
    let before = try image.run("stat", "-c", "%Y %Z", image.path).output
    _ = try OfflineHost.run(MapJob(), on: .qcow2, DiskImageOptions(path: image.path), JobContext())
    #expect(try image.run("stat", "-c", "%Y %Z", image.path).output == before)
  }

  @Test func `an image that cannot be opened is an error`() {
    do throws(JobError) {
      _ = try OfflineHost.run(MapJob(), on: .qcow2, DiskImageOptions(path: "/x/y"), JobContext())
      Issue.record("opened")
    } catch { #expect(error.message.hasPrefix("/x/y: cannot open: No such file")) }
    do throws(JobError) {
      _ = try OfflineHost.run(InfoJob(), on: "/x/y", JobContext())
      Issue.record("opened")
    } catch { #expect(error.message.hasPrefix("cannot open: No such file")) }
  }

  @Test func `a repair tells what it found, what it did, and what is left`() throws {
    let image = try Image()
    // A cluster that nothing refers to gets a refcount: a leak.
    try image.run("truncate", "-s", "8M", image.path)
    try image.run("qemu-io", "-f", "qcow2", "-c", "write 2M 64k", image.path)
    let clean = try OfflineHost.run(CheckJob(), on: image.path, JobContext())
    #expect(clean.exitCode == 0)
    let descriptor = open(image.path, O_RDWR | O_CLOEXEC)
    defer { close(descriptor) }
    let leak: [UInt8] = [0, 1]
    try #require(pwrite(descriptor, leak, 2, 131072 + 100 * 2) == 2)
    let told = Told()
    let found = try OfflineHost.run(CheckJob(), on: image.path, JobContext(tell: told.tell))
    #expect(found.exitCode == 3 && found.leaks == 1)
    #expect(told.messages.withLock { $0.count } == 1)
    let repaired = try OfflineHost.run(
      CheckJob(repair: .leaks), on: image.path, JobContext(tell: told.tell))
    #expect(repaired.exitCode == 0)
    let outputs = told.messages.withLock { $0 }.filter {
      if case .output = $0 { true } else { false }
    }
    #expect(outputs.count == 1)
  }
}
