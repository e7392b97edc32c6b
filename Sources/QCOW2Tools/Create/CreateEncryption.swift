package import QCOW2Codec

/// How the data of an image that is to be created is encrypted.
package struct CreateEncryption: Equatable, Sendable {
  package enum Method: Equatable, Sendable {
    case aes
    case luks(LUKSFormat.Options)
  }

  package let method: Method
  /// The id of the `--object secret` that has the passphrase; nil if it was not given.
  package let secretID: String?
  /// The options again, for the line that repeats them.
  let words: [String]

  /// The value of the header's field.
  var cryptMethod: UInt32 {
    switch method {
    case .aes: 1
    case .luks: 2
    }
  }

  /// The bytes of the LUKS header; nil if there is none.
  var headerLength: Int? {
    switch method {
    case .aes: nil
    case .luks(let options): LUKSFormat.areaLength(options)
    }
  }

  /// Makes a LUKS header with a new key, or nothing for what has no header.
  ///
  /// Takes twice the iteration time and more.
  ///
  /// - Throws: ``ToolError/luks(_:)``, or ``ToolError/option(_:)`` without a passphrase.
  func makeHeader(_ passphrase: Secret?) throws(ToolError) -> [UInt8] {
    guard let passphrase else { throw .option(.passphraseMissing) }
    guard case .luks(let options) = method else { return [] }
    do throws(LUKSError) {
      return try LUKSFormat.create(options, passphrase: passphrase).area
    } catch { throw .luks(error) }
  }
}

extension CreateEncryption {
  /// Reads the options of the command line.
  ///
  /// - Returns: nil if no encryption is wanted.
  /// - Throws: ``OptionError`` at the first option that cannot be used.
  init?(_ given: EncryptWords) throws(OptionError) {
    if given.old != nil && given[.format] != nil { throw .conflict(.encryptionTwice) }
    let format = given[.format] ?? (given.old == true ? "aes" : nil)
    guard let format else {
      if let first = given.first {
        throw .needs(option: first.option, other: EncryptWords.Name.format.option)
      }
      return nil
    }
    switch format {
    case "aes":
      let forLUKS = EncryptWords.Name.allCases.dropFirst(2).first { given[$0] != nil }
      if let forLUKS { throw .needs(option: forLUKS.option, other: "encrypt.format=luks") }
      method = .aes
    case "luks": method = .luks(try LUKSFormat.Options(given))
    default:
      throw .badValue(
        name: EncryptWords.Name.format.option, found: format, allowed: "luks or aes")
    }
    secretID = given[.secret]
    words = given.text
  }
}

extension LUKSFormat.Options {
  fileprivate init(_ given: EncryptWords) throws(OptionError) {
    self.init()
    cipher =
      try Self.value(given, .cipher, AESKeyLength.allCases) { "aes-\($0.rawValue * 8)" } ?? cipher
    mode = try Self.value(given, .mode, CipherMode.allCases, \.rawValue) ?? mode
    hash = try Self.value(given, .hash, HashAlgorithm.allCases, \.rawValue) ?? hash
    iv = try Self.iv(given)
    guard let time = given[.time] else { return }
    guard let milliseconds = Int(time), (0...1_000_000).contains(milliseconds) else {
      throw .badValue(
        name: EncryptWords.Name.time.option, found: time, allowed: "0 to 1000000 milliseconds")
    }
    iterationMilliseconds = milliseconds
  }

  private static func iv(_ given: EncryptWords) throws(OptionError) -> IVGenerator {
    let hash = try value(given, .ivHash, HashAlgorithm.allCases, \.rawValue)
    let name = try value(given, .iv, ["plain", "plain64", "essiv"]) { $0 } ?? "plain64"
    if name == "essiv" { return .essiv(hash ?? .sha256) }
    if hash != nil {
      throw .needs(option: EncryptWords.Name.ivHash.option, other: "encrypt.ivgen-alg=essiv")
    }
    return name == "plain" ? .plain : .plain64
  }

  /// The one of `choices` that the option names; nil if the option was not given.
  private static func value<Value>(
    _ given: EncryptWords, _ name: EncryptWords.Name, _ choices: [Value],
    _ text: (Value) -> String
  ) throws(OptionError) -> Value? {
    guard let word = given[name] else { return nil }
    if let choice = choices.first(where: { text($0) == word }) { return choice }
    let allowed = choices.map(text).joined(separator: ", ")
    throw .badValue(name: name.option, found: word, allowed: "one of " + allowed)
  }
}
