import BlockCore
import DiskImages
import Glibc
import HostFiles
import QCOW2Engine
import TestTools
import Uring

/// A guest that saw something other than what it should have.
struct Mismatch: Error, CustomStringConvertible {
  let description: String
}

/// Uses an open image as a queue worker would, host transfers by file number included.
struct Guest {
  let disk: DiskImage

  /// Carries out one request by plan if that is possible, else by service.
  ///
  /// - Returns: Whether the hit path answered.
  @discardableResult
  func perform(_ request: BlockRequest) async throws -> Bool {
    var plan = [HostTransfer](
      repeating: HostTransfer(kind: .zeroes, length: 0, dataOffset: 0, hostOffset: HostOffset(0)),
      count: 16)
    let planned = plan.withUnsafeMutableBufferPointer {
      disk.engine.plan(request, worker: 0, slot: 0, into: $0)
    }
    guard case .transfers(let count) = planned else {
      let result = await disk.engine.serve(request, worker: 0, slot: 0)
      guard result == .done else {
        throw Mismatch(description: "\(request.operation) at \(request.offset.bytes): \(result)")
      }
      return false
    }
    do {
      for transfer in plan[..<count] { try await carryOut(transfer, of: request) }
    } catch {
      _ = disk.engine.finish(worker: 0, slot: 0, failed: true)
      throw error
    }
    if disk.engine.finish(worker: 0, slot: 0, failed: false) == .needsService {
      let result = await disk.engine.serve(request, worker: 0, slot: 0)
      guard result == .done else {
        throw Mismatch(description: "\(request.operation) at \(request.offset.bytes): \(result)")
      }
    }
    return true
  }

  private func carryOut(_ transfer: HostTransfer, of request: BlockRequest) async throws {
    let data = request.data.slice(Int(transfer.dataOffset), Int(transfer.length))
    let file = disk.files[Int(transfer.file)]
    switch (transfer.kind, request.operation) {
    case (.zeroes, _): try await file.fillWithZeroes(data)
    case (.file, .write): try await file.write(from: data, at: transfer.hostOffset)
    case (.file, _): try await file.read(into: data, at: transfer.hostOffset)
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
