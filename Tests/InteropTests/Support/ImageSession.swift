import BlockCore
import HostFiles
import QCOW2Engine
import QCOW2Format
import Uring

/// A guest that saw something other than what it should have.
struct Mismatch: Error, CustomStringConvertible {
  let description: String
}

/// An image opened by our engine, used as a queue worker would use it.
final class ImageSession: @unchecked Sendable {  // why: used inside one runBlocking at a time
  static let slots = 16
  let image: Image
  private let file: UnsteadyFile

  init(_ path: String, _ options: ImageOptions, _ random: inout Random) async throws {
    let mode: HostFileMode = random.chance(70) ? .direct : .buffered
    file = UnsteadyFile(
      try RingHostFile.open(path, readOnly: options.readOnly, mode: mode), random.fork())
    var options = options
    options.workers = 2
    options.slotsPerWorker = Self.slots
    image = try await Image.open(file, options: options)
  }

  /// Carries out a request as the data plane does: by plan if that is possible, else by service.
  func perform(_ request: BlockRequest, slot: Int) async throws {
    let worker = slot % 2
    let slot = slot / 2
    var transfers = [HostTransfer](
      repeating: HostTransfer(kind: .zeroes, length: 0, dataOffset: 0, hostOffset: HostOffset(0)),
      count: 16)
    let planned =
      request.operation != .read && request.operation != .write
      ? PlanResult.needsService
      : transfers.withUnsafeMutableBufferPointer {
        image.plan(request, worker: worker, slot: slot, into: $0)
      }
    switch planned {
    case .needsService:
      if let errno = await image.serve(request, worker: worker, slot: slot).errno {
        throw Mismatch(description: "\(request.operation) failed with errno \(errno.code)")
      }
    case .transfers(let count):
      defer { image.finish(worker: worker, slot: slot) }
      for transfer in transfers[..<count] { try await carryOut(transfer, of: request) }
    }
  }

  private func carryOut(_ transfer: HostTransfer, of request: BlockRequest) async throws {
    let data = request.data.slice(Int(transfer.dataOffset), Int(transfer.length))
    switch (transfer.kind, request.operation) {
    case (.zeroes, _): try await file.fillWithZeroes(data)
    case (.file, .write): try await file.write(from: data, at: transfer.hostOffset)
    case (.file, _): try await file.read(into: data, at: transfer.hostOffset)
    }
  }

  /// Carries out operations at the same time, and checks what reads return.
  func perform(_ batch: [GuestOperation], _ shadow: Shadow) async throws {
    try await withThrowingTaskGroup(of: Void.self) { group in
      for (slot, operation) in batch.enumerated() {
        group.addTask { try await self.perform(operation, slot: slot, shadow) }
      }
      try await group.waitForAll()
    }
  }

  private func perform(
    _ operation: GuestOperation, slot: Int, _ shadow: Shadow
  ) async throws {
    let buffer = IOBuffer(count: operation.kind.hasData ? operation.range.count : 0)
    if operation.kind == .write { operation.fill(buffer) }
    let request = BlockRequest(
      operation.kind, offset: GuestOffset(operation.range.lowerBound),
      length: UInt64(operation.range.count),
      data: operation.kind.hasData ? buffer.data : .none, isFUA: operation.isFUA,
      keepsAllocation: operation.keepsAllocation)
    let bytes = UnsafeRawBufferPointer(start: buffer.base, count: operation.range.count)
    try await perform(request, slot: slot)
    switch operation.kind {
    case .read:
      guard shadow.matches(bytes, at: operation.range.lowerBound) else {
        throw Mismatch(description: "wrong data in \(operation)")
      }
    case .write: try shadow.write(bytes, at: operation.range.lowerBound)
    case .writeZeroes: try shadow.zero(operation.range)
    case .discard:
      try shadow.zero(
        operation.discarded(clusterSize: image.geometry.clusterSize, diskSize: image.size))
    case .flush: break
    }
  }

  /// Reads the whole disk and throws where it is not what the shadow has.
  func verify(_ shadow: Shadow) async throws {
    let buffer = IOBuffer(count: 1 << 20)
    var offset: UInt64 = 0
    while offset < image.size {
      let count = min(UInt64(buffer.count), image.size - offset)
      try await perform(
        BlockRequest(
          .read, offset: GuestOffset(offset), length: count,
          data: buffer.data.slice(0, Int(count))), slot: 0)
      guard
        shadow.matches(UnsafeRawBufferPointer(start: buffer.base, count: Int(count)), at: offset)
      else { throw Mismatch(description: "the disk differs from the shadow at \(offset)+\(count)") }
      offset += count
    }
  }
}

extension BlockOperation {
  var hasData: Bool { self == .read || self == .write }
}

/// Runs the body with an open image on this thread, then closes it.
func withImage(
  _ path: String, _ random: inout Random, readOnly: Bool = false,
  _ body: @escaping (ImageSession) async throws -> Void
) throws {
  var options = ImageOptions()
  options.readOnly = readOnly
  options.discardsToHost = random.chance(80)
  if random.chance(40) { options.cacheBytes = Int.random(in: 1...8, using: &random) * 4096 }
  var fork = random.fork()
  try runBlocking { () async throws(any Error) in
    let session = try await ImageSession(path, options, &fork)
    try await body(session)
    try await session.image.close()
  }
}
