extension JSONValue {
  /// A whole number, exactly.
  package static func number(_ value: UInt64) -> JSONValue {
    Int64(exactly: value).map(JSONValue.integer) ?? .unsigned(value)
  }

  /// A count; what does not fit is the largest number that does.
  package static func count(_ value: some BinaryInteger) -> JSONValue {
    .integer(Int64(clamping: value))
  }

  /// A number with exactly so many digits after the point, at most 9; 0 for what is no number.
  package static func decimal(_ value: Double, digits: Int) -> JSONValue {
    .fraction(decimalText(value, digits: digits))
  }

  /// The same as text, for tables.
  package static func decimalText(_ value: Double, digits: Int) -> String {
    var unit: UInt64 = 1
    for _ in 0..<min(max(digits, 0), 9) { unit *= 10 }
    let scaled = (value.isFinite ? value.magnitude * Double(unit) : 0).rounded()
    let whole = scaled < 9e18 ? UInt64(scaled) : 9_000_000_000_000_000_000
    let sign = value < 0 && whole > 0 ? "-" : ""
    if unit == 1 { return sign + String(whole) }
    let places = String(unit + whole % unit).dropFirst()
    return "\(sign)\(whole / unit).\(places)"
  }
}
