/// Reads the JSON that qublk itself writes: state files.
///
/// Numbers are 64-bit integers; anything else is no value, and nothing traps.
package struct JSONParser {
  private var rest: Substring.UnicodeScalarView
  private var depth = 0

  /// The value that is all of `text`, or nil if it is not such JSON.
  package static func parse(_ text: String) -> JSONValue? {
    var parser = JSONParser(rest: Substring(text).unicodeScalars)
    guard let value = parser.value() else { return nil }
    parser.skipSpace()
    return parser.rest.isEmpty ? value : nil
  }

  private init(rest: Substring.UnicodeScalarView) { self.rest = rest }

  private mutating func skipSpace() {
    rest = rest.drop { $0 == " " || $0 == "\n" || $0 == "\t" || $0 == "\r" }
  }

  private mutating func take(_ text: String) -> Bool {
    skipSpace()
    guard rest.starts(with: text.unicodeScalars) else { return false }
    rest = rest.dropFirst(text.unicodeScalars.count)
    return true
  }

  private mutating func value() -> JSONValue? {
    guard depth < 16 else { return nil }
    depth += 1
    defer { depth -= 1 }
    if take("null") { return .null }
    if take("true") { return .bool(true) }
    if take("false") { return .bool(false) }
    if take("\"") { return string().map(JSONValue.string) }
    if take("[") { return array() }
    if take("{") { return object() }
    return integer()
  }

  private mutating func integer() -> JSONValue? {
    let digits = rest.prefix { $0 == "-" || ("0"..."9").contains($0) }
    rest = rest.dropFirst(digits.count)
    return Int64(String(String.UnicodeScalarView(digits))).map(JSONValue.integer)
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

  /// The string whose opening quote has been taken.
  private mutating func string() -> String? {
    var text = String.UnicodeScalarView()
    while let scalar = rest.popFirst() {
      switch scalar {
      case "\"": return String(text)
      case "\\":
        guard let escaped = escape() else { return nil }
        text.append(escaped)
      default: text.append(scalar)
      }
    }
    return nil
  }

  private mutating func escape() -> Unicode.Scalar? {
    switch rest.popFirst() {
    case "n": return "\n"
    case "t": return "\t"
    case "r": return "\r"
    case "u":
      let digits = String(String.UnicodeScalarView(rest.prefix(4)))
      rest = rest.dropFirst(4)
      return UInt32(digits, radix: 16).flatMap(Unicode.Scalar.init)
    case let scalar?: return scalar
    case nil: return nil
    }
  }
}
