import CCrypto

/// Random bytes for keys and salts.
enum Randomness {
  static func fill(_ target: UnsafeMutableRawBufferPointer) throws(LUKSError) {
    guard let count = Int32(exactly: target.count),
      unsafe RAND_priv_bytes(target.bindMemory(to: UInt8.self).baseAddress, count) == 1
    else {
      ERR_clear_error()
      throw .noRandomness
    }
  }

  /// Bytes that need not be secret.
  static func bytes(_ count: Int) throws(LUKSError) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count)
    guard unsafe RAND_bytes(&bytes, Int32(count)) == 1 else {
      ERR_clear_error()
      throw .noRandomness
    }
    return bytes
  }

  /// A random UUID, in lower case.
  static func uuid() throws(LUKSError) -> String {
    var bytes = try bytes(16)
    bytes[6] = bytes[6] & 0x0f | 0x40
    bytes[8] = bytes[8] & 0x3f | 0x80
    let digits = bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }
    return [0..<4, 4..<6, 6..<8, 8..<10, 10..<16].map { digits[$0].joined() }
      .joined(separator: "-")
  }
}
