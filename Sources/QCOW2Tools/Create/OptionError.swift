/// Why the options of `create` cannot be used.
package enum OptionError: Error, Equatable, Sendable {
  /// No option of this name exists.
  case unknown(String)
  /// An option that qemu-img has and this program has not.
  case notSupportedYet(String)
  /// A value that the option does not take.
  case badValue(name: String, found: String, allowed: String)
  /// A comma list that starts or ends with a comma, or is empty.
  case badList(String)
  /// No size was given.
  case sizeMissing
  /// A size was given both as an argument and with `-o size=`.
  case sizeGivenTwice
  /// The option needs `compat=1.1`.
  case needsVersion3(String)
  /// An option that needs another option, which is missing.
  case needs(option: String, other: String)
  /// An image is to be encrypted, and there is no passphrase.
  case passphraseMissing
  /// A passphrase was given, and nothing is to be encrypted; or several.
  case passphraseNotWanted
  /// A passphrase was given both with `encrypt.key-secret` and with an option of this program's
  /// own.
  case passphraseTwice
  /// Options exclude each other.
  case conflict(OptionConflict)
  /// Names that do not fit where they must.
  case nameTooLong(bytes: UInt64, allowed: UInt64)
  /// The L1 table would grow beyond QEMU's limit of 32 MiB.
  case sizeTooLarge(size: UInt64, largest: UInt64, clusterSize: UInt64)
  /// The refcounts of all the clusters do not fit QEMU's limit of 8 MiB for the refcount table.
  case refcountTableTooLarge(bytes: UInt64)
}

extension OptionError {
  package var message: String {
    switch self {
    case .unknown(let name): "option \"\(name)\" does not exist"
    case .notSupportedYet(let what): "option \"\(what)\" is not supported yet"
    case .badValue(let name, let found, let allowed):
      "\(name) is \"\(found)\", expected \(allowed)"
    case .badList(let list):
      "invalid option list \"\(list)\": it is empty, or starts or ends with a comma"
    case .sizeMissing: "the size is missing: give it after the file name or with -o size="
    case .sizeGivenTwice:
      "the size is given twice: after the file name and with -o size="
    case .needsVersion3(let name): "\(name) needs compat=1.1"
    case .needs(let option, let other): "\(option) needs \(other)"
    case .passphraseMissing:
      "encryption needs a passphrase: give it with encrypt.key-secret and --object secret, or with"
        + " --secret-file, --secret-fd or --secret-keyring"
    case .passphraseNotWanted:
      "a passphrase was given that nothing needs: an image is encrypted with one, and only with"
        + " encrypt.format"
    case .passphraseTwice:
      "encrypt.key-secret and an option for the passphrase exclude each other"
    case .conflict(let conflict): conflict.rawValue
    case .nameTooLong(let bytes, let allowed):
      "the name of the backing file or data file is too long: \(bytes) bytes,"
        + " expected at most \(allowed)"
    case .sizeTooLarge(let size, let largest, let clusterSize):
      "size is \(size) bytes, expected at most \(largest) with clusters of \(clusterSize) bytes"
        + (clusterSize < 2 << 20 ? ": a larger cluster_size helps" : "")
    case .refcountTableTooLarge(let bytes):
      "the refcount table would need \(bytes) bytes, expected at most \(8 << 20):"
        + " a larger cluster_size or smaller refcount_bits helps"
    }
  }
}
