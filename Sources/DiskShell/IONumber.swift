import QCOW2Tools

/// The numbers of the command language.
enum IONumber {
  /// Reads a byte count or offset: as ``SizeText`` has it, and hexadecimal with a suffix, too;
  /// below 2^63.
  static func bytes(_ text: String) throws(IOFailure) -> UInt64 {
    if let value = SizeText.parse(text) ?? scaledHexadecimal(text) {
      guard value <= UInt64(Int64.max) else { throw .tooLarge(text) }
      return value
    }
    throw isTooLarge(text) ? .tooLarge(text) : .notNumeric(text)
  }

  /// Reads a pattern byte: decimal, 0x-hexadecimal or 0-octal, 0 to 255.
  static func pattern(_ text: String) throws(IOFailure) -> UInt8 {
    guard let value = integer(text), let byte = UInt8(exactly: value) else {
      throw .badPattern(text)
    }
    return byte
  }

  /// Reads a number of milliseconds in the same notations.
  static func milliseconds(_ text: String) throws(IOFailure) -> Int {
    guard let value = integer(text), let count = Int(exactly: value) else {
      throw .badNumber(text)
    }
    return count
  }

  /// An unsigned number in the notations of C.
  static func integer(_ text: String) -> UInt64? {
    let digits = text.hasPrefix("+") ? text.dropFirst() : text[...]
    guard let first = digits.utf8.first, isDigit(first) else { return nil }
    if digits.hasPrefix("0x") || digits.hasPrefix("0X") {
      return plain(digits.dropFirst(2), radix: 16)
    }
    return plain(digits, radix: first == UInt8(ascii: "0") ? 8 : 10)
  }

  private static func scaledHexadecimal(_ text: String) -> UInt64? {
    guard text.hasPrefix("0x") || text.hasPrefix("0X"), let suffix = text.last,
      let value = plain(text.dropFirst(2).dropLast(), radix: 16),
      let unit = SizeText.parse("1\(suffix)")
    else { return nil }
    let (bytes, overflow) = value.multipliedReportingOverflow(by: unit)
    return overflow ? nil : bytes
  }

  /// Digits alone: `UInt64(_:radix:)` takes a sign, too.
  private static func plain(_ digits: Substring, radix: Int) -> UInt64? {
    guard let first = digits.first, first != "+", first != "-" else { return nil }
    return UInt64(digits, radix: radix)
  }

  /// Whether a text that is no number would be one if its digits said 1.
  private static func isTooLarge(_ text: String) -> Bool {
    let isHexadecimal = text.hasPrefix("0x") || text.hasPrefix("0X")
    let digits = text.utf8.dropFirst(isHexadecimal ? 2 : text.hasPrefix("+") ? 1 : 0)
    let rest = digits.drop { isHexadecimal ? isHexadecimalDigit($0) : isDigit($0) }
    guard rest.count < digits.count, let tail = String(rest) else { return false }
    return tail.isEmpty || SizeText.parse("1\(tail)") != nil
  }

  private static func isDigit(_ byte: UInt8) -> Bool {
    byte >= UInt8(ascii: "0") && byte <= UInt8(ascii: "9")
  }

  private static func isHexadecimalDigit(_ byte: UInt8) -> Bool {
    isDigit(byte) || (byte | 0x20) >= UInt8(ascii: "a") && (byte | 0x20) <= UInt8(ascii: "f")
  }
}
