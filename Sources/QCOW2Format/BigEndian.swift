/// Big-endian loads and stores on raw memory: the byte order of every qcow2 structure.
///
/// Callers have checked the bounds; offsets need no alignment.
extension UnsafeRawPointer {
  @inlinable public func be16(_ offset: Int) -> UInt16 {
    unsafe UInt16(bigEndian: loadUnaligned(fromByteOffset: offset, as: UInt16.self))
  }
  @inlinable public func be32(_ offset: Int) -> UInt32 {
    unsafe UInt32(bigEndian: loadUnaligned(fromByteOffset: offset, as: UInt32.self))
  }
  @inlinable public func be64(_ offset: Int) -> UInt64 {
    unsafe UInt64(bigEndian: loadUnaligned(fromByteOffset: offset, as: UInt64.self))
  }
}

extension UnsafeMutableRawPointer {
  @inlinable public func be64(_ offset: Int) -> UInt64 {
    unsafe UnsafeRawPointer(self).be64(offset)
  }

  @inlinable public func storeBE16(_ value: UInt16, _ offset: Int) {
    unsafe storeBytes(of: value.bigEndian, toByteOffset: offset, as: UInt16.self)
  }
  @inlinable public func storeBE32(_ value: UInt32, _ offset: Int) {
    unsafe storeBytes(of: value.bigEndian, toByteOffset: offset, as: UInt32.self)
  }
  @inlinable public func storeBE64(_ value: UInt64, _ offset: Int) {
    unsafe storeBytes(of: value.bigEndian, toByteOffset: offset, as: UInt64.self)
  }
}

/// The same where speed does not matter and each access is checked: what parses, and changes, the
/// structures that are read once.
extension Span<UInt8> {
  func be16(_ offset: Int) -> UInt16 { number(offset) }
  func be32(_ offset: Int) -> UInt32 { number(offset) }
  func be64(_ offset: Int) -> UInt64 { number(offset) }

  private func number<Number: FixedWidthInteger>(_ offset: Int) -> Number {
    (offset..<(offset + MemoryLayout<Number>.size)).reduce(0) { $0 << 8 | Number(self[$1]) }
  }

  /// A copy of some bytes.
  func copy(_ range: Range<Int>) -> [UInt8] {
    unsafe extracting(range).withUnsafeBufferPointer { bytes in unsafe Array(bytes) }
  }

  /// The text in some bytes, up to the first zero byte, as QEMU takes it.
  func text(_ range: Range<Int>) -> String {
    String(decoding: copy(range).prefix { $0 != 0 }, as: UTF8.self)
  }
}

extension MutableSpan<UInt8> {
  mutating func storeBE<Number: FixedWidthInteger>(_ value: Number, _ offset: Int) {
    for (index, byte) in bigEndianBytes(value).enumerated() { self[offset + index] = byte }
  }
}

/// The bytes of a number, the most significant first.
func bigEndianBytes<Number: FixedWidthInteger>(_ value: Number) -> [UInt8] {
  let width = Number.bitWidth
  return stride(from: width - 8, through: 0, by: -8).map { UInt8(truncatingIfNeeded: value >> $0) }
}
