import BlockCore
import QCOW2Format

extension Writer {
  /// Copy-on-read: extent by extent, since what is kept changes the mapping.
  func readKeeping(_ request: BlockRequest, worker: Int) async throws(ImageError) {
    var done: UInt64 = 0
    while done < request.length {
      let offset = request.offset + done
      let extent = try await mapping.extent(at: offset, length: request.length - done)
      let data = request.data.slice(Int(done), Int(extent.length))
      if case .unallocated = extent,
        let length = try await readAndKeep(into: data, at: offset, worker: worker)
      {
        done += length
        continue
      }
      try await reader.read(extent, into: data, at: offset, worker: worker)
      done += extent.length
    }
  }

  /// Reads the backing file's data for the start of a range and keeps it in this image: copy-on-read.
  ///
  /// Whole subclusters are copied, so that nothing of them is left to the backing file. That the copy
  /// cannot be kept is no failure of the read.
  ///
  /// - Returns: the bytes read into `data`; nil if nothing was done.
  func readAndKeep(
    into data: DataBuffer, at offset: GuestOffset, worker: Int
  ) async throws(ImageError) -> UInt64? {
    guard let backing, !options.readOnly, durability.health.allowsWrites,
      offset.bytes < min(backing.length, size)
    else { return nil }
    guard let target = unsafe data.memory else { throw .needsMemory }
    let part = copiedPart(offset, length: UInt64(data.count))
    await inFlight.acquire(part.clusters)
    defer { inFlight.release(part.clusters) }
    // Somebody may have written there meanwhile; then the ordinary way is right.
    guard
      case .unallocated(let length) = try await mapping.extent(at: part.start, length: part.length),
      part.start + length > offset
    else { return nil }
    let buffer = IOBuffer(count: Int(length))
    try await reader.readBacking(into: buffer.data, at: part.start, worker: worker)
    let skipped = offset.bytes - part.start.bytes
    let count = min(length - skipped, UInt64(data.count))
    unsafe target.copyMemory(from: buffer.base + Int(skipped), byteCount: Int(count))
    do {
      try await keep(buffer, part, length, worker: worker)
    } catch { await faults.report(error) }
    withExtendedLifetime(buffer) {}
    return count
  }

  /// The subclusters around a range, at most 1 MiB of them in one slice, up to the end of the disk.
  private func copiedPart(_ offset: GuestOffset, length: UInt64) -> SlicePart {
    let mask = rules.subclusterSize - 1
    let start = offset.bytes & ~mask
    let wanted = min(length, max(1 << 20, rules.subclusterSize))
    let end = min((offset.bytes + wanted + mask) & ~mask, size)
    return slices.part(from: GuestOffset(start), length: end - start)
  }

  private func keep(
    _ buffer: IOBuffer, _ part: SlicePart, _ length: UInt64, worker: Int
  ) async throws(ImageError) {
    var done: UInt64 = 0
    while done < length {
      let rest = slices.part(from: part.start + done, length: length - done)
      done += try await writeHeld(
        rest, buffer.data.slice(Int(done), Int(rest.length)), worker: worker)
    }
  }
}
