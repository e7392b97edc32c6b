import DiskImages
import Glibc
import HostFiles
import ImageJobs
import JSON

@testable import Daemon

/// All jobs that a running device takes, in the sandbox, one after the other.
enum ConfinedJobs {
  private static let jobs = [
    ("info", "{}"), ("map", "{}"), ("measure", "{}"), ("check", "{}"),
    ("snapshot-create", #"{"name": "s"}"#), ("snapshot-list", "{}"),
    ("resize", #"{"grow-by": 1048576}"#),
    ("bitmap", #"{"bitmap": "b", "actions": [{"action": "add"}]}"#),
    ("bitmap", #"{"bitmap": "b", "actions": [{"action": "remove"}]}"#),
    ("snapshot-delete", #"{"snapshot": "1"}"#), ("amend", #"{"lazy-refcounts": true}"#),
    ("check", "{}"),
  ]

  struct Failure: Error { let job: String, text: String }

  /// A device that takes any size.
  private struct Capacity: DeviceCapacity {
    func requireChangeable() {}
    func set(bytes: UInt64) {}
  }

  static func run(on image: String) throws {
    let disk = try DiskFormat.qcow2.openBlocking(DiskImageOptions(path: image))
    for file in disk.files { try file.openReader() }
    let host = try LiveHost(disk, path: image, isConfined: true)
    host.serve(Capacity())
    try Confined.enter([])
    for file in disk.files { file.dropPageCache() }
    for (name, arguments) in jobs {
      let result = try end(of: host.start(name, JSONParser.parse(arguments)))
      if case .error(let error) = result { throw Failure(job: name, text: error.text) }
      host.noteNews()
      print("\(name) ended")
    }
    try refuseForeignFile(host)
    host.finish()
    try disk.closeBlocking()
  }

  /// The one job that opens a file by name says so, and what to do.
  private static func refuseForeignFile(_ host: LiveHost) throws {
    let merge =
      #"{"bitmap": "b", "source-file": "/etc/passwd", "actions": [{"action": "merge", "source": "b"}]}"#
    do throws(ControlError) { _ = try host.start("bitmap", JSONParser.parse(merge)) } catch {
      return print(error.text)
    }
    throw Failure(job: "bitmap", text: "a foreign file is not refused")
  }

  private static func end(of job: LiveJob) -> ControlMessage? {
    while true {
      let (messages, isEnd) = job.take()
      if isEnd { return messages.last }
      usleep(2000)
    }
  }
}
