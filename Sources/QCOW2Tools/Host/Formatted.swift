import Glibc

/// `value` with three significant digits and no trailing zeros, as printf's `%0.3g`.
func threeDigits(_ value: Double) -> String { formatted("%0.3g", value) }

/// `value` with two decimal places, as printf's `%0.2f`.
func twoPlaces(_ value: Double) -> String { formatted("%0.2f", value) }

private func formatted(_ format: String, _ value: Double) -> String {
  var text = [CChar](repeating: 0, count: 64)
  let count = unsafe withVaList([value]) { unsafe vsnprintf(&text, text.count, format, $0) }
  let bytes = text.prefix(max(0, min(Int(count), text.count - 1)))
  return String(decoding: bytes.map { UInt8(bitPattern: $0) }, as: UTF8.self)
}

/// `text` with spaces after it, up to `width` characters.
func left(_ text: String, _ width: Int) -> String {
  text + String(repeating: " ", count: max(0, width - text.utf8.count))
}

/// `text` with spaces before it, up to `width` characters.
func right(_ text: String, _ width: Int) -> String {
  String(repeating: " ", count: max(0, width - text.utf8.count)) + text
}
