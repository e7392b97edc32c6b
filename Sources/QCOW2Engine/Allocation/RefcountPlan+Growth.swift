import BlockCore
import QCOW2Format

// A refcount table that grows: the bytes of what has been planned.

extension RefcountPlan {
  private func tableBytes(_ old: DiskTable) throws(ImageError) -> IOBuffer {
    let buffer = try IOBuffer.ofTable(table.count << geometry.clusterBits)
    for index in 0..<old.count { unsafe buffer.base.storeBE64(old.load(index), index * 8) }
    unsafe storeEntries(in: buffer.base)
    return buffer
  }

  /// The new table, for use in memory.
  func table(growing old: DiskTable) throws(ImageError) -> DiskTable {
    let bytes = try tableBytes(old)
    defer { withExtendedLifetime(bytes) {} }
    return try unsafe DiskTable(
      offset: tableOffset,
      bytes: UnsafeRawBufferPointer(start: bytes.base, count: bytes.count),
      count: bytes.count / 8, in: old.memory, .refcountTable)
  }

  /// Writes blocks and table, whole, to the host file.
  func write(
    growing old: DiskTable, to storage: ImageStorage
  ) async throws(ImageError) {
    for (position, number) in numbers.enumerated() {
      let buffer = IOBuffer(count: Int(geometry.clusterSize))
      unsafe RefcountWidth.countOnce(clusters, in: buffer.base, number: number, geometry)
      try await storage.write(from: buffer, at: block(at: position))
    }
    try await storage.write(
      from: try tableBytes(old), at: tableOffset)
  }
}
