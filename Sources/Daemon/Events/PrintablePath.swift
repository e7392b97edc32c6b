/// A path, or another text from outside, on one line: control characters and backslashes are written in
/// octal, as in /proc/self/mountinfo (`\012` is a newline).
///
/// Spaces stay what they are.
package func printable(_ text: String) -> String {
  guard text.unicodeScalars.contains(where: { $0.isUnprintable }) else { return text }
  var result = ""
  for scalar in text.unicodeScalars {
    guard scalar.isUnprintable else {
      result.unicodeScalars.append(scalar)
      continue
    }
    for byte in String(scalar).utf8 {
      let digits = String(byte, radix: 8)
      result += "\\" + String(repeating: "0", count: 3 - digits.count) + digits
    }
  }
  return result
}

extension Unicode.Scalar {
  /// A control character (C0, DEL, C1), a separator of lines, or the backslash that marks them.
  fileprivate var isUnprintable: Bool {
    value < 0x20 || (0x7f...0x9f).contains(value) || value == 0x2028 || value == 0x2029
      || self == "\\"
  }
}
