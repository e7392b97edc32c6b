package import BlockCore
import QCOW2Format

/// The VM state, which QEMU keeps behind the disk: where the first L2 table begins that the disk
/// does not need.
///
/// Guest requests never reach it, since the virtual size ends before. A snapshot's is read through
/// the snapshot's own L1 table, at its own disk size.
extension Image {
  /// The guest offset of the first byte of VM state.
  private var vmStateStart: UInt64 {
    geometry.l1EntriesNeeded(forSize: size) * geometry.bytesPerL2Table
  }

  /// Fills `buffer`, plain memory, with VM state from byte `offset` on; what was never written
  /// reads as zeros.
  ///
  /// - Throws: ``ImageError/badRequest`` if the range does not end below 2^63.
  package func readVMState(
    into buffer: DataBuffer, at offset: UInt64
  ) async throws(ImageError) {
    try await withShortSlot { (job) async throws(ImageError) in
      await administration.acquire()
      defer { administration.release() }
      do throws(ImageError) {
        try unsafe await withChunks(of: buffer, at: offset, worker: job.worker) {
          (chunk, memory) async throws(ImageError) in
          try await self.read(chunk, worker: job.worker)
          unsafe memory.copyMemory(from: chunk.bytes, byteCount: chunk.count)
        }
      } catch {
        await faults.report(error)
        throw error
      }
    }
  }

  /// Writes `buffer`, plain memory, as VM state from byte `offset` on.
  ///
  /// Durable after the next flush. The L1 table grows as needed; requests wait while it does.
  ///
  /// - Throws: ``ImageError/badRequest`` if the range ends where no L1 table can reach;
  ///   ``ImageError/snapshotWithDataFile``.
  package func writeVMState(
    from buffer: DataBuffer, at offset: UInt64
  ) async throws(ImageError) {
    if buffer.count == 0 { return }
    // There is no such place in a data file, and QEMU takes no snapshots of these images.
    if writer.guestData.isExternal { throw .snapshotWithDataFile }
    try await administer { (job) async throws(ImageError) in
      try await self.makeL1Reach(self.vmStateEnd(offset, buffer.count))
      try unsafe await self.withChunks(of: buffer, at: offset, worker: job.worker) {
        (chunk, memory) async throws(ImageError) in
        if !chunk.isWhole { try await self.read(chunk, worker: job.worker) }
        unsafe chunk.bytes.copyMemory(from: memory, byteCount: chunk.count)
        try await self.write(chunk, worker: job.worker)
      }
    }
  }

  private func vmStateEnd(_ offset: UInt64, _ count: Int) throws(ImageError) -> UInt64 {
    let (start, overflow) = vmStateStart.addingReportingOverflow(offset)
    let (end, endOverflow) = start.addingReportingOverflow(UInt64(count))
    guard !overflow, !endOverflow, end <= UInt64(Int64.max) else { throw .badRequest }
    return end
  }

  /// Grows the L1 table by half at least: VM state comes in many small writes.
  private func makeL1Reach(_ end: UInt64) async throws(ImageError) {
    let needed = geometry.l1EntriesNeeded(forSize: end)
    guard needed <= Self.mostL1Entries else { throw .badRequest }
    let count = UInt64(mapping.tables.l1.count)
    if needed <= count { return }
    let wanted = min(max(needed, count + count / 2), Self.mostL1Entries)
    try await exclusively { () async throws(ImageError) in try await self.growL1(to: wanted) }
  }

  /// Calls `body` for each chunk that the range touches, with the memory that belongs to it.
  private func withChunks(
    of buffer: DataBuffer, at offset: UInt64, worker: Int,
    _ body: (VMStateChunk, UnsafeMutableRawPointer) async throws(ImageError) -> Void
  ) async throws(ImageError) {
    if buffer.count == 0 { return }
    guard let memory = unsafe buffer.memory else { throw .badRequest }
    let end = try vmStateEnd(offset, buffer.count)
    let start = end - UInt64(buffer.count)
    let room = IOBuffer(count: VMStateChunk.size)
    defer { withExtendedLifetime(room) {} }
    var next = start
    while next < end {
      let stop = min((next / UInt64(room.count) + 1) * UInt64(room.count), end)
      let chunk = VMStateChunk(bytes: next..<stop, room: room)
      await admission.enter(at: RequestSlot(worker: worker, number: 0))
      defer { admission.leave(at: RequestSlot(worker: worker, number: 0)) }
      try unsafe await body(chunk, memory + Int(next - start))
      next = stop
    }
  }

  private func read(_ chunk: VMStateChunk, worker: Int) async throws(ImageError) {
    let mapped = UInt64(mapping.tables.l1.count) * geometry.bytesPerL2Table
    let end = min(chunk.sectors.upperBound, max(mapped, chunk.sectors.lowerBound))
    let inside = Int(end - chunk.sectors.lowerBound)
    if inside > 0 {
      try await reader.read(
        BlockRequest(
          .read, offset: GuestOffset(chunk.sectors.lowerBound), length: UInt64(inside),
          data: chunk.data.slice(0, inside)),
        worker: worker)
    }
    let outside = chunk.data.count - inside
    if outside > 0 { try await reader.storage.fillWithZeroes(chunk.data.slice(inside, outside)) }
  }

  private func write(_ chunk: VMStateChunk, worker: Int) async throws(ImageError) {
    try await writer.write(
      BlockRequest(
        .write, offset: GuestOffset(chunk.sectors.lowerBound), length: UInt64(chunk.data.count),
        data: chunk.data),
      worker: worker)
  }
}

/// Some bytes of VM state, and the whole sectors around them in a buffer.
@safe
private struct VMStateChunk {
  static let size = 64 << 10
  /// Guest offsets; inside one piece of ``size`` bytes.
  let range: Range<UInt64>
  /// The same in whole sectors.
  let sectors: Range<UInt64>
  private let room: IOBuffer

  init(bytes range: Range<UInt64>, room: IOBuffer) {
    self.range = range
    sectors = (range.lowerBound & ~511)..<((range.upperBound + 511) & ~511)
    self.room = room
  }

  var count: Int { range.count }
  var isWhole: Bool { range == sectors }
  /// The sectors, in memory.
  var data: DataBuffer { room.data.slice(0, sectors.count) }
  /// The first byte of ``range``, in memory.
  var bytes: UnsafeMutableRawPointer {
    unsafe room.base + Int(range.lowerBound - sectors.lowerBound)
  }
}
