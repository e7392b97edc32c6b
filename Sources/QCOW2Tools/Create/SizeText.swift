/// Sizes in qemu-img's language.
package enum SizeText {
  /// Reads a size: decimal or 0x-hexadecimal bytes, or a decimal number with one of the suffixes
  /// b, k, M, G, T, P, E in either case; a fraction needs a suffix of k or more, and what it does
  /// not make a whole byte is dropped.
  ///
  /// - Returns: nil if the text is no size or does not fit 64 bits.
  package static func parse(_ text: String) -> UInt64? {
    var rest = Substring(text).drop { $0 == " " || $0 == "\t" }
    if rest.first == "+" { rest = rest.dropFirst() }
    if rest.hasPrefix("0x") || rest.hasPrefix("0X") {
      return parseHexadecimal(rest.dropFirst(2))
    }
    let digits = rest.prefix(while: isDigit)
    guard let whole = UInt64(digits) else { return nil }
    rest = rest.dropFirst(digits.count)
    var fraction = 0.0
    if rest.first == "." {
      let places = rest.dropFirst().prefix(while: isDigit)
      guard let value = Double("0.\(places.isEmpty ? "0" : places)") else { return nil }
      fraction = value
      rest = rest.dropFirst(1 + places.count)
    }
    guard let shift = shift(ofSuffix: rest) else { return nil }
    return scale(whole, fraction, shift: shift)
  }

  /// What somebody meant by "10GB" or "10GiB": "10G"; nil for what cannot be mended so.
  static func withoutUnit(_ text: String) -> String? {
    for unit in ["iB", "ib", "B", "b"] where text.hasSuffix(unit) {
      let short = String(text.dropLast(unit.utf8.count))
      if short.last?.isLetter == true, parse(short) != nil { return short }
    }
    return nil
  }

  private static func parseHexadecimal(_ digits: Substring) -> UInt64? {
    guard let first = digits.first, first.isHexDigit else { return nil }  // no sign in the middle
    return UInt64(digits, radix: 16)
  }

  private static func isDigit(_ character: Character) -> Bool {
    character.isASCII && character.isNumber
  }

  private static func shift(ofSuffix suffix: Substring) -> UInt64? {
    switch suffix {
    case "", "b", "B": 0
    case "k", "K": 10
    case "m", "M": 20
    case "g", "G": 30
    case "t", "T": 40
    case "p", "P": 50
    case "e", "E": 60
    default: nil
    }
  }

  private static func scale(_ whole: UInt64, _ fraction: Double, shift: UInt64) -> UInt64? {
    guard shift > 0 || fraction == 0 else { return nil }
    let unit: UInt64 = 1 << shift
    let (bytes, tooLarge) = whole.multipliedReportingOverflow(by: unit)
    // why &+: a fraction is below 1, so its bytes are below `unit`, and `bytes` is a multiple of it
    return tooLarge ? nil : bytes &+ UInt64(fraction * Double(unit))
  }

  /// A size for people: three digits and a binary unit, as qemu-img prints it.
  package static func short(_ bytes: UInt64) -> String {
    let units = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"]
    var value = Double(bytes)
    var unit = 0
    while value >= 1000 && unit < units.count - 1 {
      value /= 1024
      unit += 1
    }
    return "\(threeDigits(value)) \(units[unit])B"
  }
}
