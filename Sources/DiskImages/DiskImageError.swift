package import BlockCore
package import HostFiles
package import QCOW2Codec
package import QCOW2Engine
import QCOW2Tools

/// Why a disk image, or something that it refers to, could not be opened or closed.
package struct DiskImageError: Error, Sendable {
  /// What could not be opened.
  package enum Subject: Sendable, Equatable {
    case image
    /// By the name that stands in the referring image.
    case backingFile(String)
    case dataFile(String)
  }

  /// What is wrong with the subject.
  package enum Reason: Error, Sendable {
    case open(Errno)
    /// A block device that is to be written has another use.
    case deviceInUse(BlockDeviceUse)
    /// The kind, the size or the real path of the file cannot be found out.
    case inspect(Errno)
    /// Neither a regular file nor a block device.
    case notAFile
    case lock(ImageLockError)
    case engine(ImageError)
    /// The image is marked dirty, and its refcounts cannot be rebuilt.
    case refcounts(String)
    /// No locks are wanted, but writing is.
    case unlockedWriting
    case emptyName
    /// A `json:` name: a QEMU block device tree.
    case jsonName
    /// A name that starts with a protocol.
    case protocolName(String)
    /// `file:` before a relative path.
    case relativeURL
    /// The image does not say which format its backing file has.
    case formatMissing
    case formatUnknown(String)
    /// The policy allows no such file; its real path.
    case notAllowed(String)
    /// The default policy does not allow it: a file elsewhere, named by an image of this user.
    case notTrusted(String, owner: UInt32?)
    /// The file is in use at another place of the same chain.
    case repeated
    /// More than this many backing files.
    case tooDeep(Int)
    /// The image has an external data file and does not name it.
    case dataFileNameMissing
    /// The image is encrypted, and there is no passphrase for it.
    case secretMissing
    /// So many passphrases more than encrypted images were given.
    case secretsLeft(Int)
    /// The image is encrypted otherwise than stated, or not at all.
    case encryption(found: DiskImageOptions.Encryption?, expected: DiskImageOptions.Encryption)
    case cipher(CipherError)
    /// The image is encrypted by LUKS and does not say where the LUKS header is.
    case encryptionHeaderMissing
    case luks(LUKSError)
    /// A data file was given for an image that has none.
    case dataFileNotWanted
    /// There is no data file of the relative name that the image has.
    case dataFileLost
    /// The image has no backing file.
    case noBackingFile
    /// No backing file of the chain has this name.
    case baseNotFound(String)
  }

  /// The image that the user wanted to open, by the name the user gave it.
  package let image: String
  /// The path of the image that refers to the subject; nil if that is ``image``.
  package let referrer: String?
  package let subject: Subject
  package let reason: Reason
}

extension DiskImageError {
  /// The error line after "qublk: ".
  package var message: String {
    var parts = [image]
    if let referrer { parts.append("backing file \"\(referrer)\"") }
    switch subject {
    case .image: break
    case .backingFile(let name): parts.append("backing file \"\(name)\"")
    case .dataFile(let name): parts.append("data file \"\(name)\"")
    }
    parts.append(reason.message)
    return parts.joined(separator: ": ")
  }
}

extension DiskImageError {
  /// The path of what could not be opened; nil if that cannot be told.
  ///
  /// - Parameter image: The path of the image.
  /// - Returns: A path that need not exist.
  package func path(from image: String) -> String? {
    switch subject {
    case .image: referrer ?? image
    case .backingFile(let name), .dataFile(let name):
      (try? FilePath.absolute(referrer ?? image)).flatMap {
        try? ReferenceName.path(of: name, from: $0)
      }
    }
  }
}

extension DiskImageError.Reason {
  var isMissingFile: Bool { if case .open(.noEntry) = self { true } else { false } }

  /// What is wrong, after the name of what it is wrong with.
  package var message: String {
    switch self {
    case .open(let errno): "cannot open: \(errno)"
    case .deviceInUse(let use): "\(use.refusal), or open it read-only"
    case .inspect(let errno): "cannot read its status: \(errno)"
    case .notAFile: "neither a regular file nor a block device"
    case .lock(let error): error.text
    case .engine(let error): error.message
    case .refcounts(let problem): "image is marked dirty: \(problem)"
    case .unlockedWriting:
      "only an image that is opened for reading alone (-r) can do without locks (-U)"
    case .emptyName: "the name is empty"
    case .jsonName: "\"json:\" names are not supported, only paths are"
    case .protocolName(let name): "protocol \"\(name)\" is not supported, only paths are"
    case .relativeURL: "\"file:\" is supported before an absolute path only"
    case .formatMissing:
      "specified without backing format, and the format is never guessed: "
        + "give it with --backing-format raw or --backing-format qcow2"
    case .formatUnknown(let format):
      "format is \"\(format)\", expected \"raw\" or \"qcow2\""
    case .notAllowed(let path): "\(path) is not allowed by --backing-policy"
    case .notTrusted(let path, let owner):
      "the image that names it belongs to \(owner.map { "user \($0)" } ?? "nobody known"), who is not you, and "
        + "\(path) is not in its directory: add --backing-policy \(FilePath.directory(of: path)), or "
        + "--backing-policy any, if you trust the image"
    case .repeated: "the same file is already part of this chain"
    case .tooDeep(let limit): "more than \(limit) backing files"
    case .dataFileNameMissing:
      "the image does not name its external data file: give it with --data-file"
    case .secretMissing:
      "the image is encrypted: give its passphrase with --secret-file, --secret-fd or "
        + "--secret-keyring"
    case .secretsLeft(let count):
      count == 1
        ? "a secret was given that no encrypted image needs"
        : "\(count) secrets were given that no encrypted image needs"
    case .cipher(let error): error.text
    case .encryptionHeaderMissing: "the image has no pointer to its LUKS header"
    case .luks(let error): error.text
    case .encryption(let found, let expected):
      "encryption is \"\(found?.rawValue ?? "none")\", expected \"\(expected.rawValue)\""
    case .dataFileLost:
      "cannot open: \(Errno.noEntry): the name counts from the current directory"
    case .noBackingFile: "Image does not have a backing file"
    case .baseNotFound(let name):
      "Did not find '\(name)' in the backing chain: \"qublk info --backing-chain\" lists the names"
    case .dataFileNotWanted: "the image has no external data file: leave --data-file out"
    }
  }
}
