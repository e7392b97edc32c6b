import BlockCore
import QCOW2Format

extension L2Tables {
  /// Copies a shared table, which nobody changes any more, to a new cluster.
  ///
  /// What is resident is copied from memory: it can be ahead of the host file. Anything else has its
  /// current bytes there; what lies beyond the end of the file is zeros.
  ///
  /// With `takesCopied` the old table stays in use, so the copy shares all of its clusters: its entries
  /// are without COPIED, whatever the old ones have.
  func copyTable(
    from old: HostOffset, to new: HostOffset, takesCopied: Bool
  ) async throws(ImageError) {
    let count = Int(min(geometry.clusterSize, 64 << 10))
    let buffer = IOBuffer(count: count)
    // A DataBuffer is only an address: it does not keep the memory alive.
    defer { withExtendedLifetime(buffer) {} }
    for start in stride(from: 0, to: geometry.clusterSize, by: count) {
      // First: what is written back and evicted after this look is on the host file before the read.
      let absent = copyResident(from: old + start, to: buffer)
      if !absent.isEmpty { try await readAbsent(absent, from: old + start, into: buffer) }
      if takesCopied { takeCopied(buffer) }
      try await storage.write(from: buffer, at: new + start)
    }
  }

  /// Copies resident slices.
  ///
  /// - Returns: the positions in the buffer of the slices that are not resident.
  private func copyResident(from start: HostOffset, to buffer: IOBuffer) -> [Int] {
    stride(from: 0, to: buffer.count, by: cache.sliceSize).filter { position in
      let isThere: Void? = unsafe cache.withResident(start + UInt64(position)) { bytes in
        unsafe (buffer.base + position).copyMemory(from: bytes, byteCount: cache.sliceSize)
      }
      return isThere == nil
    }
  }

  private func readAbsent(
    _ positions: [Int], from start: HostOffset, into buffer: IOBuffer
  ) async throws(ImageError) {
    if positions.count * cache.sliceSize == buffer.count {
      return try await storage.read(into: buffer, at: start)
    }
    let host = IOBuffer(count: buffer.count)
    defer { withExtendedLifetime(host) {} }
    try await storage.read(into: host, at: start)
    for position in positions {
      unsafe (buffer.base + position).copyMemory(
        from: host.base + position, byteCount: cache.sliceSize)
    }
  }

  private func takeCopied(_ buffer: IOBuffer) {
    for position in stride(from: 0, to: buffer.count, by: 1 << geometry.l2EntryBits) {
      let entry = unsafe L2Entry(raw: buffer.base.be64(position))
      if entry.kind(hasZeroFlag: false) == .data, entry.isCopied {
        unsafe buffer.base.storeBE64(entry.copied(false).raw, position)
      }
    }
  }
}
