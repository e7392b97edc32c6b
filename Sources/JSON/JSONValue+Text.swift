extension JSONValue {
  /// The value as text over several lines, indented by 4, without a last newline.
  package var text: String { text(.lines, indent: "") }

  /// The value as text in one line.
  package var line: String { text(.line, indent: "") }

  /// The value as qemu-img prints it, without a last newline.
  ///
  /// Differs from ``text`` in two ways: everything outside printable ASCII is escaped, and the brackets
  /// of an empty array or object stand on lines of their own.
  package var qemuText: String { text(.qemu, indent: "") }

  private enum Form {
    case line, lines, qemu
  }

  private func text(_ form: Form, indent: String) -> String {
    let deeper = indent + "    "
    return switch self {
    case .null: "null"
    case .bool(let value): value ? "true" : "false"
    case .integer(let value): String(value)
    case .unsigned(let value): String(value)
    case .fraction(let text): text
    case .string(let value): Self.quoted(value, form)
    case .array(let values):
      Self.block("[", values.map { $0.text(form, indent: deeper) }, "]", form, indent)
    case .object(let members):
      Self.block(
        "{",
        members.map { "\(Self.quoted($0.name, form)): \($0.value.text(form, indent: deeper))" },
        "}", form, indent)
    }
  }

  private static func block(
    _ open: String, _ parts: [String], _ close: String, _ form: Form, _ indent: String
  ) -> String {
    if form == .line || (parts.isEmpty && form == .lines) {
      return open + parts.joined(separator: ", ") + close
    }
    let inner = parts.map { "\n\(indent)    \($0)" }.joined(separator: ",")
    return "\(open)\(inner)\n\(indent)\(close)"
  }

  private static func quoted(_ value: String, _ form: Form) -> String {
    var text = "\""
    for scalar in value.unicodeScalars {
      switch scalar {
      case "\"": text += "\\\""
      case "\\": text += "\\\\"
      case "\n": text += "\\n"
      case "\t": text += "\\t"
      case "\r": text += "\\r"
      case "\u{8}" where form == .qemu: text += "\\b"
      case "\u{c}" where form == .qemu: text += "\\f"
      case _ where scalar.value < 0x20 || (form == .qemu && scalar.value > 0x7e):
        for unit in String(scalar).utf16 { text += escape(unit, isUppercase: form == .qemu) }
      default: text.unicodeScalars.append(scalar)
      }
    }
    return text + "\""
  }

  private static func escape(_ unit: UInt16, isUppercase: Bool) -> String {
    let digits = String(unit, radix: 16, uppercase: isUppercase)
    return "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
  }
}
