/// The `encrypt.` options as they were written.
struct EncryptWords: Equatable, Sendable {
  /// In the order of the line that repeats the options.
  enum Name: String, CaseIterable, Sendable {
    case format
    case secret = "key-secret"
    case cipher = "cipher-alg"
    case mode = "cipher-mode"
    case iv = "ivgen-alg"
    case ivHash = "ivgen-hash-alg"
    case hash = "hash-alg"
    case time = "iter-time"

    /// As it stands in `-o`.
    var option: String { "encrypt.\(rawValue)" }
  }

  private var values: [Name: String] = [:]
  /// The old `encryption=on` or `off`, which stands for `encrypt.format=aes`.
  private(set) var old: Bool?

  subscript(_ name: Name) -> String? { values[name] }

  /// The first option that is there.
  var first: Name? { Name.allCases.first { values[$0] != nil } }

  /// Keeps an option if it is one of these.
  ///
  /// - Returns: Whether it is.
  /// - Throws: ``OptionError`` for an option that does not exist, or a value that it does not take.
  mutating func take(_ name: String, _ value: String) throws(OptionError) -> Bool {
    if name == "encryption" {
      old = try CreateOptions.flag(name, value)
      return true
    }
    let prefix = "encrypt."
    guard name.hasPrefix(prefix) else { return false }
    guard let known = Name(rawValue: String(name.dropFirst(prefix.count))) else {
      throw .unknown(name)
    }
    values[known] = value
    return true
  }

  /// The options again, as `name=value`.
  var text: [String] {
    Name.allCases.compactMap { name in values[name].map { "\(name.option)=\($0)" } }
      + (old.map { ["encryption=\($0 ? "on" : "off")"] } ?? [])
  }
}
