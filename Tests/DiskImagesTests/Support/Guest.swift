import BlockCore
import DiskImages
import Glibc
import HostFiles
import QCOW2Engine
import Serving
import TestTools
import Uring

/// A guest that saw something other than what it should have.
struct Mismatch: Error, CustomStringConvertible {
  let description: String
}

/// Uses an open image as a queue worker would, host transfers by file number included.
struct Guest {
  let disk: DiskImage
  private let requests: FileRequests

  init(disk: DiskImage) {
    self.disk = disk
    requests = FileRequests(disk.engine, files: disk.files, worker: 0)
  }

  /// Carries out one request by plan if that is possible, else by service.
  func perform(_ request: BlockRequest) async throws {
    if let error = await requests.perform(request, slot: 0) {
      throw Mismatch(description: "\(request.operation) at \(request.offset.bytes): \(error)")
    }
  }

  /// Whether the hit path answers a request, whose data is left alone.
  func isPlanned(_ request: BlockRequest) -> Bool {
    withUnsafeTemporaryAllocation(of: HostTransfer.self, capacity: 16) { plan in
      guard
        case .transfers = disk.engine.plan(
          request, at: RequestSlot(worker: 0, number: 1), into: plan)
      else {
        return false
      }
      _ = disk.engine.finish(at: RequestSlot(worker: 0, number: 1), failed: true)
      return true
    }
  }

  /// Writes `count` bytes of `byte`.
  func write(_ byte: UInt8, at offset: UInt64, count: Int) async throws {
    let buffer = IOBuffer(count: count)
    defer { withExtendedLifetime(buffer) {} }
    memset(buffer.base, Int32(byte), count)
    try await perform(
      BlockRequest(
        .write, offset: GuestOffset(offset), length: UInt64(count), data: buffer.data))
  }

  /// The whole disk.
  func contents() async throws -> [UInt8] {
    var all: [UInt8] = []
    let buffer = IOBuffer(count: 1 << 18)
    defer { withExtendedLifetime(buffer) {} }
    while UInt64(all.count) < disk.engine.size {
      let offset = UInt64(all.count)
      let count = Int(min(UInt64(buffer.count), disk.engine.size - offset))
      try await perform(
        BlockRequest(
          .read, offset: GuestOffset(offset), length: UInt64(count),
          data: buffer.data.slice(0, count)))
      all += UnsafeRawBufferPointer(start: buffer.base, count: count)
    }
    return all
  }
}

/// Runs the body with an open image on this thread, then closes it.
func withDisk<T>(
  _ options: DiskImageOptions, _ body: @escaping (Guest) async throws -> T
) throws -> T {
  try runBlocking { () async throws(any Error) in
    let disk = try await DiskImage.open(options)
    do {
      let result = try await body(Guest(disk: disk))
      try await disk.close()
      return result
    } catch {
      try? await disk.close()
      throw error
    }
  }
}

/// All bytes of a file.
func contents(_ path: String) throws -> [UInt8] {
  let descriptor = open(path, O_RDONLY | O_CLOEXEC)
  guard descriptor >= 0 else { throw POSIXFailure(code: errno) }
  defer { close(descriptor) }
  var all: [UInt8] = []
  var chunk = [UInt8](repeating: 0, count: 1 << 18)
  while true {
    let count = read(descriptor, &chunk, chunk.count)
    if count < 0 { throw POSIXFailure(code: errno) }
    if count == 0 { return all }
    all += chunk[..<count]
  }
}
