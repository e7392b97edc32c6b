import BlockCore
import DiskImages
import HostFiles
import QCOW2Engine
import QCOW2Tools
import Serving

/// What is readable of a destroyed image, as a disk that can be copied: what is lost reads as zeros.
///
/// For one request at a time.
final class SalvageDisk: OpenDisk, BlockTarget, @unchecked Sendable {  // why: one request at a time
  let name: String
  let reader: SalvageReader
  /// The backing file; nil if there is none, or it is left out or cannot be opened.
  private let backing: (any OpenDisk)?
  private let backingRequests: FileRequests?
  /// What the backing file has counts as lost.
  private let losesBacking: Bool

  init(_ reader: SalvageReader, name: String, backing: (any OpenDisk)?, losesBacking: Bool) {
    self.reader = reader
    self.name = name
    self.backing = backing
    self.losesBacking = losesBacking
    backingRequests = backing.map { FileRequests($0, worker: 0) }
  }

  var size: UInt64 { reader.size }
  var target: any BlockTarget { self }
  var files: [RingHostFile] { [] }
  var objects: [HostObject] { [] }
  var identity: (device: UInt64, inode: UInt64) { (0, 0) }
  var allocationUnit: UInt64 { reader.clusterSize }
  var isEncrypted: Bool { false }
  var warnings: [String] { [] }
  func maintain() async {}

  func status(
    at offset: GuestOffset, length: UInt64
  ) async throws(ImageError) -> BlockStatus {
    guard length > 0, offset.bytes < size, length <= size - offset.bytes else { throw .badRequest }
    let found = reader.content(at: offset.bytes, length: length)
    switch found.content {
    case .zero: return BlockStatus(kind: .zero, length: found.length)
    case .unallocated:
      if losesBacking || backing != nil { return BlockStatus(kind: .data, length: found.length) }
      return BlockStatus(kind: .zero, length: found.length)
    case .lost(let reason):
      // It may be exabytes, by a table that is lost: nothing is read of them.
      reader.noteLoss(offset.bytes..<offset.bytes + found.length, reason)
      return BlockStatus(kind: .zero, length: found.length)
    case .data, .compressed: return BlockStatus(kind: .data, length: found.length)
    }
  }

  func plan(
    _ request: BlockRequest, at slot: RequestSlot,
    into plan: UnsafeMutableBufferPointer<HostTransfer>
  ) -> PlanResult { .needsService }

  func finish(at slot: RequestSlot, failed: Bool) -> FinishResult { .done }

  func serve(_ request: BlockRequest, at slot: RequestSlot) async -> ServiceResult {
    guard request.operation == .read else { return .failed(.readOnly) }
    guard let memory = unsafe request.data.memory else { return .needsMemory }
    let place = request.offset.bytes
    guard request.length == UInt64(request.data.count), place <= size,
      request.length <= size - place
    else { return .failed(.invalid) }
    let bytes = unsafe UnsafeMutableRawBufferPointer(start: memory, count: request.data.count)
    for part in unsafe reader.read(into: bytes, at: place) {
      await readBacking(
        request.data.slice(part.lowerBound, part.count), at: place + UInt64(part.lowerBound))
    }
    return .done
  }

  private func readBacking(_ data: DataBuffer, at place: UInt64) async {
    let range = place..<place + UInt64(data.count)
    guard let backing, let backingRequests else {
      if losesBacking { reader.noteLoss(range, .backingFile) }
      return
    }
    guard place < backing.target.size else { return }
    let count = Int(min(UInt64(data.count), backing.target.size - place))
    let request = BlockRequest(
      .read, offset: GuestOffset(place), length: UInt64(count), data: data.slice(0, count))
    guard await backingRequests.perform(request, slot: 0) != nil else { return }
    if let memory = unsafe data.memory {
      unsafe memory.initializeMemory(as: UInt8.self, repeating: 0, count: count)
    }
    guard count > 512 else { return reader.noteLoss(range, .backingFile) }
    // Halves, until the bad sectors are found.
    let half = max(512, count / 1024 * 512)
    await readBacking(data.slice(0, half), at: place)
    await readBacking(data.slice(half, count - half), at: place + UInt64(half))
  }

  func close() async throws(DiskImageError) { try await backing?.close() }
}
