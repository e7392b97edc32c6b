import BlockCore

@testable import QCOW2Engine

// Parts of an image that stand alone in a test, each in a memory of its own.

extension SliceCache {
  convenience init(sliceSize: Int, slots: Int) throws(ImageError) {
    try self.init(.l2, sliceSize: sliceSize, slots: slots, in: MetadataMemory())
  }
}

extension DiskTable {
  convenience init(
    offset: HostOffset, bytes: UnsafeRawBufferPointer, count: Int
  ) throws(ImageError) {
    try self.init(offset: offset, bytes: bytes, count: count, in: MetadataMemory(), .l1Table)
  }
}

/// Bits of a bitmap, and their memory.
final class OwnBits: Sendable {
  let bits: TrackedBits
  private let memory: MetadataMemory

  init(count: UInt64, granularityBits: UInt8) throws(ImageError) {
    memory = try MetadataMemory()
    let words = BitmapWords(memory)
    bits = try words.bits(
      count: count, granularityBits: granularityBits, table: HostOffset(1 << 16))
  }
}
