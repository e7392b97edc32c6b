/// A JSON value: what `--json` prints and what a state file holds.
///
/// Members keep their order.
package enum JSONValue: Equatable {
  case null
  case bool(Bool)
  case integer(Int64)
  /// A number with a fraction, as it is printed.
  case fraction(String)
  case string(String)
  case array([JSONValue])
  case object([Member])

  /// One name and value of an object.
  package struct Member: Equatable {
    /// The name, not quoted.
    package let name: String
    /// What the name stands for.
    package let value: JSONValue

    /// A member with this name.
    package init(_ name: String, _ value: JSONValue) {
      self.name = name
      self.value = value
    }
  }

  /// The value of the first member with this name; nil for other values and unknown names.
  package subscript(name: String) -> JSONValue? {
    guard case .object(let members) = self else { return nil }
    return members.first { $0.name == name }?.value
  }

  /// The value if it is a string.
  package var string: String? {
    guard case .string(let value) = self else { return nil }
    return value
  }

  /// The value if it is an integer.
  package var integer: Int64? {
    guard case .integer(let value) = self else { return nil }
    return value
  }

  /// The value if it is true or false.
  package var bool: Bool? {
    guard case .bool(let value) = self else { return nil }
    return value
  }
}

extension JSONValue {
  /// The value as text over several lines, indented by 4 as qemu-img's, without a last newline.
  package var text: String { text(indent: "") }

  /// The value as text in one line.
  package var line: String { text(indent: nil) }

  private func text(indent: String?) -> String {
    let deeper = indent.map { $0 + "    " }
    return switch self {
    case .null: "null"
    case .bool(let value): value ? "true" : "false"
    case .integer(let value): String(value)
    case .fraction(let text): text
    case .string(let value): Self.quoted(value)
    case .array(let values): Self.block("[", values.map { $0.text(indent: deeper) }, "]", indent)
    case .object(let members):
      Self.block(
        "{", members.map { "\(Self.quoted($0.name)): \($0.value.text(indent: deeper))" }, "}",
        indent)
    }
  }

  private static func block(
    _ open: String, _ parts: [String], _ close: String, _ indent: String?
  ) -> String {
    guard !parts.isEmpty else { return open + close }
    guard let indent else { return open + parts.joined(separator: ", ") + close }
    let inner = parts.map { "\(indent)    \($0)" }.joined(separator: ",\n")
    return "\(open)\n\(inner)\n\(indent)\(close)"
  }

  private static func quoted(_ value: String) -> String {
    var text = "\""
    for scalar in value.unicodeScalars {
      switch scalar {
      case "\"": text += "\\\""
      case "\\": text += "\\\\"
      case "\n": text += "\\n"
      case "\t": text += "\\t"
      case "\r": text += "\\r"
      case _ where scalar.value < 0x20:
        let digits = String(scalar.value, radix: 16)
        text += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
      default: text.unicodeScalars.append(scalar)
      }
    }
    return text + "\""
  }
}
