import BlockCore
import DiskImages
import Glibc
import HostFiles
import QCOW2Engine
import QCOW2Format
import TestTools
import Uring

/// A guest that saw something other than what it should have.
struct Mismatch: Error, CustomStringConvertible {
  let description: String
}

/// An image with all its files, opened by our engine, used as a queue worker would use it.
final class ImageSession: @unchecked Sendable {  // why: used inside one runBlocking at a time
  static let slots = 16
  let disk: DiskImage
  /// The files of planned transfers, by number.
  private let files: [UnsteadyFile]

  var image: Image { disk.engine }

  /// Wraps the files into ``UnsteadyFile``, unless the options have something of their own to do.
  init(
    _ options: DiskImageOptions, _ random: inout SeededGenerator, keepsEngineFile: Bool = false
  ) async throws {
    var options = options
    options.mode = random.chance(70) ? .direct : .buffered
    options.engine.workers = 2
    options.engine.slotsPerWorker = Self.slots
    let unsteadiness = Unsteadiness(random.fork())
    if !keepsEngineFile { options.engineFile = { UnsteadyFile($0, unsteadiness) } }
    disk = try await Self.open(options)
    files = disk.files.map { UnsteadyFile($0, unsteadiness) }
  }

  /// Opens the image; again for a while if it is locked, as a child process that another test is
  /// just starting may bear a lock that we have let go of.
  private static func open(_ options: DiskImageOptions) async throws -> DiskImage {
    for _ in 0..<50 {
      do { return try await DiskImage.open(options) } catch {
        guard case .lock = error.reason else { throw error }
        usleep(20_000)
      }
    }
    return try await DiskImage.open(options)
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
        image.plan(request, at: RequestSlot(worker: worker, number: slot), into: $0)
      }
    if case .transfers(let count) = planned {
      do {
        for transfer in transfers[..<count] { try await carryOut(transfer, of: request) }
      } catch {
        _ = image.finish(at: RequestSlot(worker: worker, number: slot), failed: true)
        throw error
      }
      if image.finish(at: RequestSlot(worker: worker, number: slot), failed: false) == .done {
        return
      }
    }
    if let errno = await image.serve(request, at: RequestSlot(worker: worker, number: slot)).errno {
      throw Mismatch(description: "\(request.operation) failed with errno \(errno.code)")
    }
  }

  private func carryOut(_ transfer: HostTransfer, of request: BlockRequest) async throws {
    let data = request.data.slice(Int(transfer.dataOffset), Int(transfer.length))
    let file = files[Int(transfer.file)]
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

  func perform(_ operation: GuestOperation, slot: Int, _ shadow: Shadow) async throws {
    let buffer = IOBuffer(count: operation.kind.hasData ? operation.range.count : 0)
    if operation.kind == .write { operation.fill(buffer) }
    let request = BlockRequest(
      operation.kind, offset: GuestOffset(operation.range.lowerBound),
      length: UInt64(operation.range.count),
      data: operation.kind.hasData ? buffer.data : .none, isFUA: operation.isFUA,
      keepsAllocation: operation.keepsAllocation)
    let bytes = UnsafeRawBufferPointer(start: buffer.base, count: operation.range.count)
    try await perform(request, slot: slot)
    if operation.kind == .read {
      guard shadow.matches(bytes, at: operation.range.lowerBound) else {
        throw Mismatch(description: "wrong data in \(operation)")
      }
    }
    try shadow.apply(operation, zeroed: zeroed(by: operation))
    withExtendedLifetime(buffer) {}
  }

  /// The bytes that read as zeros after a discard or write-zeroes.
  private func zeroed(by operation: GuestOperation) -> Range<UInt64> {
    switch operation.kind {
    case .writeZeroes: operation.range
    case .discard where header.version >= 3 || header.backingFileOffset == 0:
      operation.discarded(
        unit: isExtended ? header.geometry.clusterSize / 32 : header.geometry.clusterSize,
        diskSize: image.size)
    default: 0..<0
    }
  }

  private var header: Header { image.header }
  private var isExtended: Bool { header.incompatible.contains(.extendedL2) }

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
      let bytes = UnsafeRawBufferPointer(start: buffer.base, count: Int(count))
      if let wrong = shadow.firstDifference(bytes, at: offset) {
        throw Mismatch(description: "the disk differs from the shadow at \(wrong)")
      }
      offset += count
    }
  }
}

extension BlockOperation {
  var hasData: Bool { self == .read || self == .write }
}

/// Runs the body with an open image on this thread, then closes it.
func withImage(
  _ path: String, _ random: inout SeededGenerator, readOnly: Bool = false,
  _ body: @escaping (ImageSession) async throws -> Void
) throws {
  try withImage(DiskImageOptions(path: path, readOnly: readOnly), &random, body)
}

/// The same for an image that takes more than a path to open.
func withImage(
  _ options: DiskImageOptions, _ random: inout SeededGenerator, keepsEngineFile: Bool = false,
  _ body: @escaping (ImageSession) async throws -> Void
) throws {
  var options = options
  options.engine.discardsToHost = random.chance(80)
  if random.chance(40) {
    options.engine.cacheBytes = Int.random(in: 1...8, using: &random) * 4096
  }
  let wanted = options
  var fork = random.fork()
  try runBlocking { () async throws(any Error) in
    let session = try await ImageSession(
      wanted, &fork, keepsEngineFile: keepsEngineFile)
    do { try await body(session) } catch {
      try? await session.disk.close()
      throw error
    }
    try await session.disk.close()
  }
}
