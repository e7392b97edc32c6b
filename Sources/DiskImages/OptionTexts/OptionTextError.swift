/// Why the text of an option in QEMU's language cannot be used.
package struct OptionTextError: Error, Equatable, Sendable {
  package enum Problem: Error, Equatable, Sendable {
    /// A part is not KEY=VALUE.
    case notKeyValue(String)
    /// A key is there twice.
    case repeated(key: String)
    case missing(key: String)
    /// A key that is unknown here, whatever it means to QEMU.
    case unknown(key: String)
    case badValue(key: String, found: String, allowed: String)
    /// Two keys of which only one can be.
    case conflict(String, String)
    /// No `--object secret` has this id.
    case noSuchSecret(id: String)
    /// Two `--object secret` have this id.
    case sameID(String)
    case secret(SecretError)
    /// JSON in place of KEY=VALUE.
    case json
  }

  /// The option, as "--object".
  package let option: String
  package let problem: Problem

  package init(option: String, problem: Problem) {
    self.option = option
    self.problem = problem
  }

  /// The error line after "qublk: ".
  package var message: String {
    let text =
      switch problem {
      case .notKeyValue(let part): "\"\(part)\" is not KEY=VALUE"
      case .repeated(let key): "\(key) is given twice"
      case .missing(let key): "\(key) is missing"
      case .unknown(let key): "\(key) is not supported"
      case .badValue(let key, let found, let allowed):
        "\(key) is \"\(found)\", expected \(allowed)"
      case .conflict(let one, let other): "\(one) and \(other) exclude each other"
      case .noSuchSecret(let id): "no --object secret has the id \"\(id)\""
      case .sameID(let id): "two secrets have the id \"\(id)\""
      case .secret(let error): error.message
      case .json: "JSON is not supported, only KEY=VALUE,…"
      }
    return "\(option): \(text)"
  }
}
