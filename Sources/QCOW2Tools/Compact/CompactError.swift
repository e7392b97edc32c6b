import BlockCore

/// Why an image cannot be compacted; nothing has been changed then.
package enum CompactError: Error, Equatable, Sendable {
  /// The image is marked corrupt.
  case markedCorrupt
  /// Its metadata contradicts itself; the first finding, if one can be named.
  case damaged(CheckFinding?)
  /// The image is encrypted by LUKS, and nothing unlocks it.
  case secretMissing
}

extension CompactError {
  /// What is refused and why, in the form of an error line after the image's name.
  package var message: String {
    switch self {
    case .markedCorrupt:
      "the image is marked corrupt: repair it first with \"qublk check -r all\""
    case .damaged(let finding):
      (finding.map { $0.message + ": " } ?? "")
        + "the image has errors, so nothing is moved: repair it first with \"qublk check -r all\""
    case .secretMissing:
      "the image is encrypted by LUKS, and its data is encrypted anew where it moves: give its passphrase "
        + "with encrypt.key-secret in --image-opts, or with --secret-file, --secret-fd or --secret-keyring"
    }
  }
}
