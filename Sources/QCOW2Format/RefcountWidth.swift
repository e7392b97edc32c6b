/// Reads and writes refcounts of every width in a refcount block.
///
/// Widths below 8 bits are packed from the least significant bit of each byte upwards; widths of 8
/// and more are big-endian. Source: qcow2 specification, "Refcount block entry".
public enum RefcountWidth {
  /// The refcount at `index` of the block, or part of a block, that starts at `block`.
  @inlinable public static func get(
    _ block: UnsafeRawPointer, order: Int, index: Int
  ) -> UInt64 {
    switch order {
    case 0, 1, 2:
      let bits = 1 << order
      let perByte = 8 >> order
      let byte = unsafe UInt64(block.load(fromByteOffset: index / perByte, as: UInt8.self))
      return (byte >> UInt64(index % perByte * bits)) & ((1 << UInt64(bits)) &- 1)
    case 3: return unsafe UInt64(block.load(fromByteOffset: index, as: UInt8.self))
    case 4: return unsafe UInt64(block.be16(index &* 2))
    case 5: return unsafe UInt64(block.be32(index &* 4))
    default: return unsafe block.be64(index &* 8)
    }
  }

  /// Stores `value`, which must fit the width.
  @inlinable public static func set(
    _ block: UnsafeMutableRawPointer, order: Int, index: Int, value: UInt64
  ) {
    switch order {
    case 0, 1, 2:
      let bits = 1 << order
      let perByte = 8 >> order
      let shift = UInt64(index % perByte * bits)
      let mask: UInt64 = ((1 << UInt64(bits)) &- 1) << shift
      let old = unsafe UInt64(block.load(fromByteOffset: index / perByte, as: UInt8.self))
      let new = (old & ~mask) | ((value << shift) & mask)
      unsafe block.storeBytes(
        of: UInt8(truncatingIfNeeded: new), toByteOffset: index / perByte, as: UInt8.self)
    case 3:
      unsafe block.storeBytes(
        of: UInt8(truncatingIfNeeded: value), toByteOffset: index, as: UInt8.self)
    case 4: unsafe block.storeBE16(UInt16(truncatingIfNeeded: value), index &* 2)
    case 5: unsafe block.storeBE32(UInt32(truncatingIfNeeded: value), index &* 4)
    default: unsafe block.storeBE64(value, index &* 8)
    }
  }
}
