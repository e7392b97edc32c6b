package import BlockCore
import QCOW2Format

/// Why an option of an image cannot be changed; nothing has been changed then.
///
/// Where qemu-img has a sentence for it, the message begins with that sentence.
package enum AmendError: Error, Equatable, Sendable {
  /// An option that only `create` takes.
  case onlyForCreation(String)
  /// The image is marked corrupt.
  case markedCorrupt
  /// The version has no lazy refcounts.
  case lazyNeedsVersion3
  /// The version has refcounts of 16 bits only.
  case widthNeedsVersion3
  /// A cluster has more references than a refcount of the new width can count.
  case tooManyReferences(bits: Int, cluster: HostOffset, refcount: UInt64)
  /// The image has no external data file.
  case noDataFile
  /// The data file need not be a raw image now, so it may not be one.
  case rawDataFile
  /// Another backing file, or another format of it.
  case backingFile
  /// The header cluster has no room for the new header.
  case headerFull
  /// The version cannot go down.
  case downgrade(DowngradeObstacle)
  /// The image is not encrypted.
  case notEncrypted
  /// The image is encrypted by something that has no key slots.
  case notLUKS
  /// A key slot cannot be changed.
  case keySlot(KeySlotObstacle)
}

/// What version 2 has no way to say.
package enum DowngradeObstacle: Equatable, Sendable {
  case dataFile
  case extendedL2
  case compressedByZstd
  case refcountBits(Int)
  /// A snapshot of another disk size, or with more VM state than 32 bits can count.
  case snapshots
  case bitmaps
  case incompatible(UInt64)
  /// Zeros that hide a backing file would have to be written as data, which needs the key.
  case encryptedZeros
}

/// Why a key slot cannot be changed.
package enum KeySlotObstacle: Equatable, Sendable {
  case newSecretMissing
  case oldSecretWithActive
  case newSecretWithInactive
  case iterTimeWithInactive
  case nothingToErase
  case badSlot(UInt64)
  case active(Int)
  case inactive(Int)
  case noFreeSlot
  case noMatch
  case otherSecret(Int)
  case allActive
  case onlyActive(Int)
  case stateMissing
  case secretMissing
}

extension AmendError {
  /// What is refused and why, in the form of an error line after the image's name.
  package var message: String {
    switch self {
    case .onlyForCreation(let name):
      "Invalid parameter '\(name)': this option is only supported for image creation"
    case .markedCorrupt:
      "the image is marked corrupt: repair it first with \"qublk check -r all\""
    case .lazyNeedsVersion3:
      "Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or greater)"
    case .widthNeedsVersion3:
      "Refcount widths other than 16 bits require compatibility level 1.1 or above (use compat=1.1 or "
        + "greater)"
    case .tooManyReferences(let bits, let cluster, let refcount):
      "Cannot decrease refcount entry width to \(bits) bits: Cluster at offset \(hex(cluster.bytes)) has a "
        + "refcount of \(refcount)"
    case .noDataFile: "data-file can only be set for images that use an external data file"
    case .rawDataFile: "data-file-raw cannot be set on existing images"
    case .backingFile: "Cannot amend the backing file: use \"qublk rebase\" instead"
    case .headerFull: "the first cluster of the image has no room for the new header"
    case .downgrade(let obstacle): obstacle.text
    case .notEncrypted: "Can't amend encryption options - encryption not present"
    case .notLUKS: "Only LUKS encryption options can be amended for qcow2 with amend"
    case .keySlot(let obstacle): obstacle.text
    }
  }
}

extension DowngradeObstacle {
  fileprivate var text: String {
    switch self {
    case .dataFile: "Cannot downgrade an image with a data file"
    case .extendedL2: "Cannot downgrade an image with extended L2 entries: convert it instead"
    case .compressedByZstd:
      "Cannot downgrade an image with zstd compression type and existing compressed clusters"
    case .refcountBits(let bits):
      "compat=0.10 requires refcount_bits=16: they are \(bits), add refcount_bits=16"
    case .snapshots:
      "Internal snapshots prevent downgrade of image: one has another disk size, or more VM state than 4 GiB"
    case .bitmaps:
      "Cannot downgrade an image with persistent bitmaps: remove them first with \"qublk bitmap "
        + "--remove-all\""
    case .encryptedZeros:
      "Cannot downgrade an encrypted image with a backing file and clusters that read as zeros"
    case .incompatible(let bits):
      "Cannot downgrade an image with incompatible features \(hex(bits)) set"
    }
  }
}

extension KeySlotObstacle {
  fileprivate var text: String {
    switch self {
    case .newSecretMissing: "'new-secret' is required to activate a keyslot"
    case .oldSecretWithActive: "'old-secret' must not be given when activating keyslots"
    case .newSecretWithInactive: "'new-secret' must not be given when erasing keyslots"
    case .iterTimeWithInactive: "'iter-time' must not be given when erasing keyslots"
    case .nothingToErase:
      "To erase keyslot(s), either explicit keyslot index or the password currently contained in them must "
        + "be given"
    case .badSlot(let slot): "Invalid keyslot \(slot) specified, must be between 0 and 7"
    case .active(let slot):
      "Refusing to overwrite active keyslot \(slot) - please erase it first, or add --force"
    case .inactive(let slot):
      "Given keyslot \(slot) is already erased (inactive): --force erases it again"
    case .noFreeSlot: "Can't add a keyslot - all keyslots are in use"
    case .noMatch: "No keyslots match given (old) password for erase operation"
    case .otherSecret(let slot):
      "Given keyslot \(slot) doesn't contain the given old password for erase operation"
    case .allActive:
      "All the active keyslots match the (old) password that was given and erasing them will erase all the "
        + "data in the image irreversibly - refusing operation without --force"
    case .onlyActive(let slot):
      "Attempt to erase the only active keyslot \(slot) which will erase all the data in the image "
        + "irreversibly - refusing operation without --force"
    case .stateMissing: "Parameter 'encrypt.state' is missing"
    case .secretMissing:
      "a key slot can only be added by who can unlock the image: give its passphrase with "
        + "encrypt.key-secret in --image-opts, or with --secret-file, --secret-fd or --secret-keyring"
    }
  }
}
