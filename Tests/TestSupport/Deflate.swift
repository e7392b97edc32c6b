/// Deflate streams of stored blocks, written and read by hand (RFC 1951, section 3.2.4).
package enum StoredDeflate {
  /// Wraps bytes; blocks of at most `block` bytes.
  package static func wrap(_ bytes: UnsafeRawBufferPointer, block: Int = 40_000) -> [UInt8] {
    var stream: [UInt8] = []
    var start = 0
    while start < bytes.count {
      let count = min(block, bytes.count - start)
      let isLast: UInt8 = start + count == bytes.count ? 1 : 0
      let low = UInt8(truncatingIfNeeded: count)
      let high = UInt8(truncatingIfNeeded: count >> 8)
      stream += [isLast, low, high, ~low, ~high]
      stream += bytes[start..<(start + count)]
      start += count
    }
    return stream
  }

  /// The length of ``wrap(_:block:)`` for `count` bytes.
  package static func length(_ count: Int, block: Int = 40_000) -> Int {
    count + (count + block - 1) / block * 5
  }

  /// Unwraps stored blocks until `target` is full; false if the stream is anything else.
  package static func unwrap(
    _ stream: UnsafeRawBufferPointer, into target: UnsafeMutableRawBufferPointer
  ) -> Bool {
    var position = 0
    var filled = 0
    while filled < target.count {
      guard position + 5 <= stream.count, stream[position] & ~1 == 0 else { return false }
      let count = Int(stream[position + 1]) | Int(stream[position + 2]) << 8
      let check = Int(stream[position + 3]) | Int(stream[position + 4]) << 8
      position += 5
      guard count ^ check == 0xffff, position + count <= stream.count,
        filled + count <= target.count
      else { return false }
      for index in 0..<count { target[filled + index] = stream[position + index] }
      filled += count
      position += count
    }
    return true
  }
}
