/// Writes deflate streams by hand, bit by bit.
///
/// Source: RFC 1951, sections 3.1.1 and 3.2.
struct DeflateWriter {
  private(set) var bytes: [UInt8] = []
  private var used = 8

  /// Least significant bit first, as everything but Huffman codes.
  mutating func bits(_ value: Int, _ count: Int) {
    for bit in 0..<count {
      if used == 8 {
        bytes.append(0)
        used = 0
      }
      bytes[bytes.count - 1] |= UInt8((value >> bit) & 1) << UInt8(used)
      used += 1
    }
  }

  /// Most significant bit first.
  mutating func code(_ value: Int, _ count: Int) {
    for bit in (0..<count).reversed() { bits((value >> bit) & 1, 1) }
  }

  /// A block of bytes as they are, at most 65535.
  mutating func stored(_ data: [UInt8], isLast: Bool) {
    bits(isLast ? 1 : 0, 1)
    bits(0, 2)
    used = 8
    bytes += [UInt8(data.count & 255), UInt8(data.count >> 8)]
    bytes += [UInt8(~data.count & 255), UInt8((~data.count >> 8) & 255)]
    bytes += data
  }

  /// A last block that repeats 258 bytes from 32768 bytes before.
  mutating func farthestMatch() {
    bits(1, 1)
    bits(1, 2)
    code(0b1100_0101, 8)  // length code 285
    code(29, 5)
    bits(32768 - 24577, 13)
    code(0, 7)  // end of block
  }
}
