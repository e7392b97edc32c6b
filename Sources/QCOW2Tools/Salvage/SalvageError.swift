package import QCOW2Codec
import QCOW2Format

/// Why nothing of an image can be read.
package enum SalvageError: Error, Equatable, Sendable {
  /// Neither the header nor the file say how large clusters are.
  case noClusterSize
  /// The header leads to no L1 table, and nothing in the file looks like one.
  case noL1Table(UInt64)
  case noSnapshot
  /// The image is encrypted, and nothing unlocks it.
  case secretMissing
  case noEncryptionHeader
  case cipher(CipherError)
  /// The file that is to be written is the image itself.
  case targetIsSource
}

extension SalvageError {
  /// What is wrong and the way out, in the form of an error line after the image's name.
  package var message: String {
    switch self {
    case .noClusterSize:
      "nothing says how large clusters are, and nothing in the file looks like a table: give --cluster-size"
    case .noL1Table(let offset):
      "l1_table_offset is \(hex(offset)), where no table can be, and nothing in the file looks like one: "
        + "give --l1-offset, or --scan"
    case .noSnapshot: "there is no such snapshot, or the snapshot table cannot be read so far"
    case .secretMissing:
      "the image is encrypted: give its passphrase with encrypt.key-secret in --image-opts, or with "
        + "--secret-file, --secret-fd or --secret-keyring"
    case .noEncryptionHeader: "the image is encrypted, and nothing says where its LUKS header is"
    case .cipher(let error): error.text
    case .targetIsSource: "it is the image itself: give another target"
    }
  }
}
