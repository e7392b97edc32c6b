/// JSON as qemu-img prints it: four spaces for each level, keys in the order given.
package enum JSONText: Equatable, Sendable {
  case string(String)
  case unsigned(UInt64)
  case signed(Int64)
  case bool(Bool)
  case array([JSONText])
  case object([(String, JSONText)])

  package static func == (lhs: JSONText, rhs: JSONText) -> Bool { lhs.text() == rhs.text() }

  /// The text, without a line break at the end.
  package func text(indent: Int = 0) -> String {
    switch self {
    case .string(let value): Self.quoted(value)
    case .unsigned(let value): String(value)
    case .signed(let value): String(value)
    case .bool(let value): value ? "true" : "false"
    case .array(let values):
      Self.list("[", values.map { $0.text(indent: indent + 1) }, "]", indent)
    case .object(let members):
      Self.list(
        "{", members.map { "\(Self.quoted($0)): \($1.text(indent: indent + 1))" }, "}", indent)
    }
  }

  private static func list(
    _ open: String, _ items: [String], _ close: String, _ indent: Int
  ) -> String {
    let margin = String(repeating: "    ", count: indent)
    let lines = items.map { "\n\(margin)    \($0)" }
    return open + lines.joined(separator: ",") + "\n\(margin)\(close)"
  }

  /// Everything outside printable ASCII as `\u` escapes of UTF-16 code units.
  private static func quoted(_ value: String) -> String {
    var text = "\""
    for scalar in value.unicodeScalars {
      switch scalar {
      case "\"": text += "\\\""
      case "\\": text += "\\\\"
      case "\u{8}": text += "\\b"
      case "\u{c}": text += "\\f"
      case "\n": text += "\\n"
      case "\r": text += "\\r"
      case "\t": text += "\\t"
      case " "..."~": text.unicodeScalars.append(scalar)
      default: for unit in String(scalar).utf16 { text += escape(unit) }
      }
    }
    return text + "\""
  }

  private static func escape(_ unit: UInt16) -> String {
    let digits = String(unit, radix: 16, uppercase: true)
    return "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
  }
}
