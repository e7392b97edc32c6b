/// Reads JSON.
///
/// Strict where a reader may be: the grammar is that of RFC 8259, and what is not JSON is no value. Values are
/// nested at most ``depthLimit`` deep, whole numbers have 64 bits, and of two members with one name
/// the first counts. The work is linear in the length of the text, and nothing traps.
package struct JSONParser {
  /// Arrays and objects inside each other, the value itself included.
  package static let depthLimit = 16

  private let bytes: [UInt8]
  private var position = 0
  private var depth = 0

  /// The value that is all of `text`, or nil if it is not such JSON.
  package static func parse(_ text: String) -> JSONValue? { parse(Array(text.utf8)) }

  /// The same of bytes, which must be valid UTF-8.
  package static func parse(_ bytes: [UInt8]) -> JSONValue? {
    var parser = JSONParser(bytes)
    guard let value = parser.value() else { return nil }
    parser.skipSpace()
    return parser.next == nil ? value : nil
  }

  private init(_ bytes: [UInt8]) { self.bytes = bytes }

  private var next: UInt8? { position < bytes.count ? bytes[position] : nil }

  private mutating func skipSpace() {
    while let byte = next, " \n\t\r".utf8.contains(byte) { position += 1 }
  }

  /// Takes `text` if it comes next, after any space.
  private mutating func take(_ text: String) -> Bool {
    skipSpace()
    guard bytes[position...].starts(with: text.utf8) else { return false }
    position += text.utf8.count
    return true
  }

  private mutating func value() -> JSONValue? {
    guard depth < Self.depthLimit else { return nil }
    depth += 1
    defer { depth -= 1 }
    if take("\"") { return string().map(JSONValue.string) }
    if take("{") { return object() }
    if take("[") { return array() }
    if take("null") { return .null }
    if take("true") { return .bool(true) }
    if take("false") { return .bool(false) }
    return number()
  }

  private mutating func array() -> JSONValue? {
    var values: [JSONValue] = []
    if take("]") { return .array(values) }
    while true {
      guard let next = value() else { return nil }
      values.append(next)
      if take("]") { return .array(values) }
      guard take(",") else { return nil }
    }
  }

  private mutating func object() -> JSONValue? {
    var members: [JSONValue.Member] = []
    if take("}") { return .object(members) }
    while true {
      guard take("\""), let name = string(), take(":"), let next = value() else { return nil }
      members.append(.init(name, next))
      if take("}") { return .object(members) }
      guard take(",") else { return nil }
    }
  }
}

// MARK: Numbers

extension JSONParser {
  private mutating func number() -> JSONValue? {
    let start = position
    if next == UInt8(ascii: "-") { position += 1 }
    guard let first = next, digits() else { return nil }
    let isLong = position - start > (bytes[start] == UInt8(ascii: "-") ? 2 : 1)
    if first == UInt8(ascii: "0") && isLong { return nil }
    let wholeEnd = position
    if next == UInt8(ascii: ".") {
      position += 1
      guard digits() else { return nil }
    }
    guard exponent() else { return nil }
    let text = String(decoding: bytes[start..<position], as: UTF8.self)
    if position > wholeEnd { return .fraction(text) }
    if let value = Int64(text) { return .integer(value) }
    return UInt64(text).map(JSONValue.unsigned)
  }

  /// Takes digits, at least one.
  private mutating func digits() -> Bool {
    let start = position
    while let byte = next, (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte) { position += 1 }
    return position > start
  }

  /// Takes an exponent if there is one; false if it is no whole one.
  private mutating func exponent() -> Bool {
    guard next == UInt8(ascii: "e") || next == UInt8(ascii: "E") else { return true }
    position += 1
    if next == UInt8(ascii: "+") || next == UInt8(ascii: "-") { position += 1 }
    return digits()
  }
}

// MARK: Strings

extension JSONParser {
  /// The string whose opening quote has been taken.
  private mutating func string() -> String? {
    var text: [UInt8] = []
    while let byte = next {
      position += 1
      switch byte {
      case UInt8(ascii: "\""): return String(validating: text, as: UTF8.self)
      case UInt8(ascii: "\\"):
        guard let escaped = escape() else { return nil }
        text += Array(String(escaped).utf8)
      case ..<0x20: return nil
      default: text.append(byte)
      }
    }
    return nil
  }

  private mutating func escape() -> Unicode.Scalar? {
    guard let byte = next else { return nil }
    position += 1
    switch byte {
    case UInt8(ascii: "b"): return "\u{8}"
    case UInt8(ascii: "f"): return "\u{c}"
    case UInt8(ascii: "n"): return "\n"
    case UInt8(ascii: "t"): return "\t"
    case UInt8(ascii: "r"): return "\r"
    case UInt8(ascii: "u"): return codePoint()
    case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"): return Unicode.Scalar(byte)
    default: return nil
    }
  }

  /// The scalar of one `\u` escape, or of the two that make a surrogate pair.
  private mutating func codePoint() -> Unicode.Scalar? {
    guard let unit = fourDigits() else { return nil }
    guard (0xd800..<0xdc00).contains(unit) else { return Unicode.Scalar(unit) }
    guard bytes[position...].starts(with: "\\u".utf8) else { return nil }
    position += 2
    guard let low = fourDigits(), (0xdc00..<0xe000).contains(low) else { return nil }
    return Unicode.Scalar(0x10000 + (unit - 0xd800) << 10 + (low - 0xdc00))
  }

  private mutating func fourDigits() -> UInt32? {
    guard position + 4 <= bytes.count else { return nil }
    var value: UInt32 = 0
    for byte in bytes[position..<position + 4] {
      guard let digit = Character(Unicode.Scalar(byte)).hexDigitValue else { return nil }
      value = value << 4 | UInt32(digit)
    }
    position += 4
    return value
  }
}
