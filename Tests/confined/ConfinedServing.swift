import BlockCore
import DiskImages
import HostFiles
import QCOW2Engine
import Serving
import Ublk

@testable import Daemon

/// Requests of 4 KiB through a queue's own worker, with and without the sandbox: what the sandbox costs.
enum ConfinedServing {
  private static let depth = 64

  static func run(
    _ operation: String, _ count: UInt64, _ image: String, isConfined: Bool
  ) throws {
    var options = DiskImageOptions(path: image)
    options.engine.slotsPerWorker = depth
    let disk = try DiskFormat.qcow2.openBlocking(options)
    // The memory in which a driver would describe requests lies there.
    if isConfined { try Confined.enter([.init("/dev/shm", [.read, .write, .list, .change])]) }
    let kind: BlockOperation = operation == "write" ? .write : .read
    let requests = (0..<depth).map { tag in
      (operation: kind, offset: UInt64(tag) * 65536 + 8192, length: UInt64(4096))
    }
    let counters = QueueCounters()
    try DriverlessQueue.serve(
      disk.target, files: disk.files.map(\.descriptor), requests: requests, count: count,
      counters: counters)
    try disk.closeBlocking()
    guard counters.failures.current == 0 else { throw Errno.io }
    print(counters.latency(kind).count)
  }
}
