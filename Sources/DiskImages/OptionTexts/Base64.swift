import QCOW2Codec

/// Base64 (RFC 4648, section 4) of secrets, from locked memory to locked memory.
enum Base64 {
  /// The bytes that `text` stands for; white space is passed over.
  ///
  /// - Throws: ``SecretError/Problem/notBase64`` if it is anything else, or if there is no memory.
  static func decode(_ text: Secret) throws(SecretError.Problem) -> Secret {
    var count = 0
    let whole = unsafe try Secret(count: text.count) { (target) throws(SecretError.Problem) in
      let isValid = unsafe text.withBytes { unsafe decode($0, into: target, &count) }
      guard isValid else { throw .notBase64 }
    }
    return unsafe try whole.withBytes { (bytes) throws(SecretError.Problem) in
      unsafe try Secret(
        copying: UnsafeRawBufferPointer(rebasing: bytes[..<count]),
        failingWith: SecretError.Problem.self)
    }
  }

  private static func decode(
    _ source: UnsafeRawBufferPointer, into target: UnsafeMutableRawBufferPointer,
    _ count: inout Int
  ) -> Bool {
    var word: UInt32 = 0
    var digits = 0
    var padding = 0
    for index in 0..<source.count {
      let byte = unsafe source[index]
      if isSpace(byte) { continue }
      if byte == UInt8(ascii: "=") {
        padding += 1
        continue
      }
      guard padding == 0, let digit = digit(byte) else { return false }
      word = word << 6 | UInt32(digit)
      digits += 1
      guard digits % 4 != 1 else { continue }
      // Of the bits gathered, 6 per digit, 8 at a time are whole.
      let left = UInt32((4 - digits % 4) % 4 * 2)
      unsafe target[count] = UInt8(truncatingIfNeeded: word >> left)
      count += 1
    }
    return digits % 4 != 1 && (digits + padding) % 4 == 0 && padding <= 2
  }

  private static func isSpace(_ byte: UInt8) -> Bool { byte == 32 || (9...13).contains(byte) }

  private static func digit(_ byte: UInt8) -> UInt8? {
    switch byte {
    case UInt8(ascii: "A")...UInt8(ascii: "Z"): byte - UInt8(ascii: "A")
    case UInt8(ascii: "a")...UInt8(ascii: "z"): byte - UInt8(ascii: "a") + 26
    case UInt8(ascii: "0")...UInt8(ascii: "9"): byte - UInt8(ascii: "0") + 52
    case UInt8(ascii: "+"): 62
    case UInt8(ascii: "/"): 63
    default: nil
    }
  }
}
