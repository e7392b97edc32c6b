/// Big-endian numbers and texts in bytes, each access checked: for the parsers and writers of
/// structures that are read once.
///
/// Tables that requests read have the unchecked loads of QCOW2Format.
extension Span<UInt8> {
  package func be16(_ offset: Int) -> UInt16 { number(offset) }
  package func be32(_ offset: Int) -> UInt32 { number(offset) }
  package func be64(_ offset: Int) -> UInt64 { number(offset) }

  private func number<Number: FixedWidthInteger>(_ offset: Int) -> Number {
    (offset..<(offset + MemoryLayout<Number>.size)).reduce(0) { $0 << 8 | Number(self[$1]) }
  }

  /// A copy of some bytes.
  package func copy(_ range: Range<Int>) -> [UInt8] {
    unsafe extracting(range).withUnsafeBufferPointer { bytes in unsafe Array(bytes) }
  }

  /// The text in some bytes, up to the first zero byte.
  package func text(_ range: Range<Int>) -> String {
    String(decoding: copy(range).prefix { $0 != 0 }, as: UTF8.self)
  }
}

extension MutableSpan<UInt8> {
  package mutating func storeBE<Number: FixedWidthInteger>(_ value: Number, _ offset: Int) {
    for (index, byte) in bigEndianBytes(value).enumerated() { self[offset + index] = byte }
  }
}

/// The bytes of a number, the most significant first.
package func bigEndianBytes<Number: FixedWidthInteger>(_ value: Number) -> [UInt8] {
  let width = Number.bitWidth
  return stride(from: width - 8, through: 0, by: -8).map { UInt8(truncatingIfNeeded: value >> $0) }
}
