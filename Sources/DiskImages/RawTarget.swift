package import BlockCore
import HostFiles
package import QCOW2Engine
import Synchronization

/// A raw file or block device as a disk: what is at an offset of the disk is there in the file.
///
/// The disk is made of whole sectors: a file that ends within one reads as zeros from there to the
/// sector's end, and a write there makes the file longer, as in QEMU.
///
/// Holds no data in memory: a flush syncs the file, and the first sync that fails fails all later
/// ones.
package final class RawTarget: BlockTarget {
  private let file: any HostFile
  private let isReadOnly: Bool
  private let discardsToHost: Bool
  /// The bytes of the disk.
  private let bytes: Atomic<UInt64>
  /// Below this the file has all bytes, so that a transfer cannot meet its end.
  private let present: Atomic<UInt64>
  /// The errno of the first failed sync; 0 for none.
  private let failedSync = Atomic<Int32>(0)
  /// A write failed for want of space, and none has succeeded since: all of them take the slow path,
  /// which sees when there is some again.
  private let lacksSpace = Atomic<Bool>(false)
  private let reporter: EventReporter?

  /// - Parameters:
  ///   - file: opened by the caller.
  ///   - length: its length in bytes.
  ///   - discardsToHost: Discards give space back to the host.
  ///   - reporter: Hears of failures.
  package init(
    _ file: any HostFile, length: UInt64, discardsToHost: Bool = true,
    reporter: EventReporter? = nil
  ) {
    self.file = file
    self.reporter = reporter
    isReadOnly = file.traits.isReadOnly
    self.discardsToHost = discardsToHost
    bytes = Atomic((min(length, 1 << 62) + 511) & ~511)
    present = Atomic(length & ~511)
  }

  package var size: UInt64 { bytes.load(ordering: .acquiring) }

  // MARK: Hit path

  package func plan(
    _ request: BlockRequest, at slot: RequestSlot,
    into plan: UnsafeMutableBufferPointer<HostTransfer>
  ) -> PlanResult {
    let isWrite = request.operation == .write
    guard
      isWrite && !request.isFUA && !isReadOnly && !lacksSpace.load(ordering: .relaxed)
        || request.operation == .read,
      !plan.isEmpty, request.length > 0, request.length <= 1 << 30, inBounds(request),
      request.offset.bytes + request.length <= present.load(ordering: .acquiring)
    else { return .needsService }
    unsafe plan[0] = HostTransfer(
      kind: .file, length: UInt32(request.length), dataOffset: 0,
      hostOffset: HostOffset(request.offset.bytes))
    return .transfers(count: 1)
  }

  package func finish(at slot: RequestSlot, failed: Bool) -> FinishResult { .done }

  private func inBounds(_ request: BlockRequest) -> Bool {
    let size = self.size
    return (request.offset.bytes | request.length) & 511 == 0 && request.offset.bytes <= size
      && request.length <= size - request.offset.bytes
  }

  // MARK: Slow path

  package func serve(_ request: BlockRequest, at slot: RequestSlot) async -> ServiceResult {
    do throws(Errno) {
      guard inBounds(request) else { throw .invalid }
      try await carryOut(request)
      if request.operation == .write { noteSpaceFound() }
      return .done
    } catch {
      if inBounds(request) { note(error, request) }
      return .failed(error.forGuest)
    }
  }

  private func noteSpaceFound() {
    if lacksSpace.load(ordering: .relaxed), lacksSpace.exchange(false, ordering: .relaxed) {
      reporter?.note(.spaceFound)
    }
  }

  private func note(_ error: Errno, _ request: BlockRequest) {
    let operation = request.hostOperation
    // A failed sync is reported where it is seen first.
    if operation == .sync || request.isFUA && failedSync.load(ordering: .acquiring) != 0 { return }
    if isReadOnly && operation != .read { return }
    guard error.forGuest == .noSpace else {
      reporter?.note(
        operation, at: HostOffset(request.offset.bytes), length: request.length, error)
      return
    }
    lacksSpace.store(true, ordering: .relaxed)
    reporter?.note(.spaceLacking) { event in
      event.operation = operation
      event.offset = HostOffset(request.offset.bytes)
      event.length = request.length
      event.guest = request.offset
      event.errno = error
    }
  }

  private func carryOut(_ request: BlockRequest) async throws(Errno) {
    let offset = HostOffset(request.offset.bytes)
    switch request.operation {
    case .read: return try await file.read(into: request.data, at: offset)
    case .flush: return try await flush()
    case .write, .discard, .writeZeroes: break
    }
    if isReadOnly { throw .readOnly }
    if request.length == 0 { return }
    switch request.operation {
    case .discard:
      if discardsToHost { try await file.punchHole(at: offset, length: request.length) }
    case .writeZeroes: try await file.writeZeroes(at: offset, length: request.length)
    case .read, .write, .flush: try await file.write(from: request.data, at: offset)
    }
    if request.isFUA { try await flush() }
  }

  /// Makes durable every write that completed before the call.
  package func flush() async throws(Errno) {
    let earlier = failedSync.load(ordering: .acquiring)
    if earlier != 0 { throw Errno(earlier) }
    if isReadOnly { return }
    do throws(Errno) { try await file.sync() } catch {
      // Data may be lost that a later sync, which succeeds, knows nothing of.
      failedSync.store(error.code, ordering: .releasing)
      reporter?.note(.sync, at: HostOffset(0), length: 0, error)
      throw error
    }
  }

  /// Whether the disk is a block device, which keeps its size.
  package var isBlockDevice: Bool { file.traits.isBlockDevice }

  /// Gives a range of a regular file, which nobody has written, the host's storage, by writing zeros if
  /// asked to.
  package func provideStorage(_ range: Range<UInt64>, writesZeros: Bool) async throws(Errno) {
    if isReadOnly { throw .readOnly }
    let start = HostOffset(range.lowerBound)
    let length = UInt64(range.count)
    if !writesZeros, try await file.allocateHoles(at: start, length: length) { return }
    try await file.fillHoles(at: start, length: length)
  }

  /// Takes the disk for one of `length` bytes, a multiple of 512, before the file is so long: a copy fills
  /// it from the start to the end, and nobody else uses it.
  package func presume(length: UInt64) {
    bytes.store(length, ordering: .releasing)
    present.store(length, ordering: .releasing)
  }

  /// Changes the size of a regular file to `length`, a multiple of 512; no request may be running.
  package func resize(to length: UInt64) async throws(Errno) {
    if isReadOnly { throw .readOnly }
    guard length & 511 == 0, length <= 1 << 62, !file.traits.isBlockDevice else { throw .invalid }
    try await file.setLength(length)
    bytes.store(length, ordering: .releasing)
    present.store(length, ordering: .releasing)
  }
}

extension BlockRequest {
  fileprivate var hostOperation: HostOperation {
    switch operation {
    case .read: .read
    case .write: .write
    case .flush: .sync
    case .discard, .writeZeroes: .zero
    }
  }
}
