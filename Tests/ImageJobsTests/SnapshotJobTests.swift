import BlockCore
import DiskImages
import Glibc
import ImageJobs
import JSON
import QCOW2Engine
import QCOW2Tools
import TestTools
import Testing

/// Internal snapshots as jobs on images that a command opens.
@Suite(.enabled(if: hasQEMU, "needs qemu-img")) struct SnapshotJobTests {
  private let directory: TemporaryDirectory
  private let path: String

  init() throws {
    directory = try TemporaryDirectory(in: "/dev/shm")
    path = directory.path + "/a.qcow2"
  }

  private func make(_ size: String, _ options: String = "cluster_size=4096") throws {
    try mustRunQEMU(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, size])
    try mustRunQEMUIO(["-c", "write -P 1 0 1M", path])
  }

  private func run<Job: DiskJob>(_ job: Job) throws(JobError) -> Job.Outcome
  where Job.Item == NoValue {
    try OfflineHost.run(job, on: .qcow2, DiskImageOptions(path: path), JobContext())
  }

  private func names() throws -> [String] {
    try OfflineHost.run(SnapshotListJob(), on: path, JobContext()).json.array?.compactMap {
      $0["name"]?.string
    } ?? []
  }

  @Test func `arguments and outcomes survive the wire`() throws {
    for selector: SnapshotSelector in [
      .idOrName("1"), .id("2"), .name("x"), .exact(id: "3", name: "y"),
    ] {
      var arguments = try JobArguments(SnapshotDeleteJob(selector).arguments)
      #expect(try SnapshotDeleteJob(&arguments).snapshot == selector)
      try arguments.finish()
    }
    for wrong in ["{}", #"{"snapshot": "1", "id": "1"}"#] {
      var arguments = try JobArguments(JSONParser.parse(wrong))
      #expect(throws: JobError.self) { try SnapshotApplyJob(&arguments) }
    }
    var arguments = try JobArguments(.object([]))
    #expect(throws: JobError.self) { try SnapshotCreateJob(&arguments) }
    try make("4M")
    let outcome = try run(SnapshotCreateJob(named: "one"))
    #expect(outcome.id == "1" && outcome.pauseMicroseconds < 1_000_000)
    #expect(SnapshotCreateJob.Outcome(json: outcome.json) == outcome)
  }

  @Test func theDiskGetsTheSizeOfTheSnapshot() throws {
    try make("4M")
    _ = try run(SnapshotCreateJob(named: "small"))
    try mustRunQEMU(["qemu-img", "resize", "-q", path, "64M"])
    try mustRunQEMUIO(["-c", "write -P 2 60M 1M", path])
    _ = try run(SnapshotCreateJob(named: "large"))
    for (name, size) in [("small", 4 << 20), ("large", 64 << 20), ("1", 4 << 20)] {
      _ = try run(SnapshotApplyJob(.idOrName(name)))
      let info = try OfflineHost.run(InfoJob(), on: path, JobContext())
      #expect(info.json["virtual-size"] == .number(UInt64(size)))
      try mustRunQEMU(["qemu-img", "check", "-q", path])
      try mustRunQEMUIO(["-r", "-c", "read -P 1 0 1M", path])
    }
    #expect(try names() == ["small", "large"])
  }

  @Test func bitmapsClaimTheWholeDiskAfterApply() throws {
    try make("4M")
    _ = try run(SnapshotCreateJob(named: "one"))
    try mustRunQEMU(["qemu-img", "bitmap", "--add", path, "changes"])
    _ = try run(SnapshotApplyJob(.name("one")))
    try mustRunQEMU(["qemu-img", "check", "-q", path])
    #expect(try firstBitmapEntry() == 1, "an entry that says: all ones")
    try mustRunQEMU(["qemu-img", "resize", "-q", path, "8M"])
    do throws(JobError) {
      _ = try run(SnapshotApplyJob(.name("one")))
      Issue.record("applied")
    } catch {
      #expect(error.message.contains("4194304") && error.message.contains("8388608"))
    }
    try mustRunQEMU(["qemu-img", "check", "-q", path])
  }

  @Test func `a cancelled snapshot leaves the image as it was`() throws {
    try make("4M")
    let before = try mustRun("cksum", path)
    let context = JobContext<NoValue>()
    context.cancellation.cancel()
    for job: any DiskJob in [SnapshotCreateJob(named: "x"), SnapshotDeleteJob(.name("x"))] {
      #expect(throws: JobError.self) { try Self.start(job, path, context) }
    }
    #expect(try mustRun("cksum", path) == before)
  }

  private static func start<Job: DiskJob>(
    _ job: Job, _ path: String, _ context: JobContext<NoValue>
  ) throws {
    _ = try OfflineHost.run(
      job, on: .qcow2, DiskImageOptions(path: path),
      JobContext<Job.Item>(cancellation: context.cancellation))
  }

  @Test func `a raw disk and an external data file have no snapshots`() throws {
    try make("4M")
    do throws(JobError) {
      _ = try OfflineHost.run(
        SnapshotCreateJob(named: "x"), on: .raw, DiskImageOptions(path: path), JobContext())
      Issue.record("taken")
    } catch { #expect(error.message.contains("qcow2")) }
    try make("4M", "data_file=\(directory.path)/data")
    do throws(JobError) {
      _ = try run(SnapshotCreateJob(named: "x"))
      Issue.record("taken")
    } catch { #expect(error.message.contains("data file")) }
    #expect(try names().isEmpty)
  }

  /// The first entry of the table of the first bitmap, by the specification.
  private func firstBitmapEntry() throws -> UInt64 {
    let bytes = try contents(path)
    func number(_ offset: UInt64, _ count: UInt64) -> UInt64 {
      bytes[Int(offset)..<Int(offset + count)].reduce(0) { $0 << 8 | UInt64($1) }
    }
    var extensionAt = number(100, 4)
    while number(extensionAt, 4) != 0x2385_2875 {
      if number(extensionAt, 4) == 0 { return .max }
      extensionAt += 8 + (number(extensionAt + 4, 4) + 7) / 8 * 8
    }
    let directory = number(extensionAt + 8 + 16, 8)
    return number(number(directory, 8), 8)
  }
}
