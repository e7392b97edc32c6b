/// KEY=VALUE,KEY=VALUE in QEMU's writing: a comma inside a value is doubled.
struct KeyValueList {
  /// In the order of the text; keys are unique.
  private(set) var pairs: [(key: String, value: String)] = []

  /// Takes a text apart; the first part may be without "=" if there is an `impliedKey` for it.
  init(parsing text: String, impliedKey: String? = nil) throws(OptionTextError.Problem) {
    if text.first == "{" { throw .json }
    for (index, part) in Self.parts(text).enumerated() {
      let key: String
      var value = part[...]
      if let sign = part.firstIndex(of: "=") {
        key = String(part[..<sign])
        value = part[part.index(after: sign)...]
      } else if index == 0, let impliedKey {
        key = impliedKey
      } else {
        throw .notKeyValue(part)
      }
      if key.isEmpty { throw .notKeyValue(part) }
      if pairs.contains(where: { $0.key == key }) { throw .repeated(key: key) }
      pairs.append((key, String(value)))
    }
  }

  /// The text between single commas, double ones made single.
  private static func parts(_ text: String) -> [String] {
    var parts = [""]
    var rest = text[...]
    while let next = rest.popFirst() {
      if next != "," {
        parts[parts.count - 1].append(next)
      } else if rest.first == "," {
        rest.removeFirst()
        parts[parts.count - 1].append(",")
      } else {
        parts.append("")
      }
    }
    return parts
  }

  /// Removes a key and returns its value.
  mutating func take(_ key: String) -> String? {
    guard let index = pairs.firstIndex(where: { $0.key == key }) else { return nil }
    return pairs.remove(at: index).value
  }

  /// Removes a key whose value must be one of some words.
  mutating func take(
    _ key: String, among allowed: [String]
  ) throws(OptionTextError.Problem) -> String? {
    guard let value = take(key) else { return nil }
    if allowed.contains(value) { return value }
    throw .badValue(key: key, found: value, allowed: Self.choice(allowed))
  }

  /// Removes a key whose value must be on or off.
  mutating func takeSwitch(_ key: String) throws(OptionTextError.Problem) -> Bool? {
    let value = try take(key, among: ["on", "off"])
    return value.map { $0 == "on" }
  }

  /// Refuses what is left, by name.
  func requireNothingElse() throws(OptionTextError.Problem) {
    if let first = pairs.first { throw .unknown(key: first.key) }
  }

  /// "a, b or c".
  private static func choice(_ words: [String]) -> String {
    guard let last = words.last, words.count > 1 else { return words.first ?? "" }
    return words.dropLast().joined(separator: ", ") + " or " + last
  }
}
