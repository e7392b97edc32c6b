import BlockCore
import DiskImages
import Glibc
import HostFiles
import QCOW2Engine
import Serving
import Ublk
import Uring

/// Serves requests of 4 KiB through a queue's own worker, but without a driver; for `scripts/counts`.
///
///     countedqueue read|write|flush COUNT IMAGE
///
/// Serves COUNT requests and a few more, each tag one and the same, and prints how many it were.
@main
struct CountedQueue {
  private static let depth = 64

  static func main() {
    let words = CommandLine.arguments
    let operations: [String: BlockOperation] = ["read": .read, "write": .write, "flush": .flush]
    guard words.count == 4, let operation = operations[words[1]], let count = UInt64(words[2])
    else {
      print("usage: countedqueue read|write|flush COUNT IMAGE")
      exit(64)
    }
    do { print(try serve(operation, count, words[3])) } catch {
      print("countedqueue: \(error)")
      exit(1)
    }
  }

  private static func serve(
    _ operation: BlockOperation, _ count: UInt64, _ image: String
  ) throws -> UInt64 {
    var options = DiskImageOptions(path: image)
    options.engine.slotsPerWorker = depth
    let disk = try runBlocking { () async throws(DiskImageError) in
      try await DiskFormat.qcow2.open(options, size: 0)
    }
    let requests = (0..<depth).map { tag in
      (
        operation: operation, offset: UInt64(tag) * 65536 + 8192,
        length: operation == .flush ? UInt64(0) : 4096
      )
    }
    let counters = QueueCounters()
    try DriverlessQueue.serve(
      disk.target, files: disk.files.map(\.descriptor), requests: requests, count: count,
      counters: counters)
    try runBlocking { () async throws(DiskImageError) in try await disk.close() }
    guard counters.failures.current == 0 else { throw Errno.io }
    return counters.latency(operation).count
  }
}
