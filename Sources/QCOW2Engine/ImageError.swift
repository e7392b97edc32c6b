package import BlockCore
package import QCOW2Format

/// What the engine was doing with the host file when it failed.
package enum HostOperation: String, Sendable {
  case read, write, zero, sync, length, resize
}

/// A feature of the format that this version cannot serve.
package enum UnsupportedFeature: String, Sendable {
  case backingFile = "a backing file"
  case encryption = "encryption"
  case externalDataFile = "an external data file"
  case extendedL2 = "extended L2 entries"
  case compression = "compressed clusters"
}

/// Why an image cannot be opened, or a request not be carried out.
package enum ImageError: Error, Sendable {
  /// The metadata breaks the format.
  case format(FormatError)
  /// A host operation failed at `offset`.
  case io(HostOperation, at: HostOffset, Errno)
  case unsupported(UnsupportedFeature)
  /// The corrupt bit is set; only reading is allowed.
  case markedCorrupt
  /// The dirty bit is set: refcounts may be wrong, so nothing may be written.
  case markedDirty
  case readOnly
  /// An earlier failure (a lost fsync, or corruption found) has stopped all writing.
  case writesStopped
  /// No host cluster can be had.
  case noSpace
  /// A refcount would exceed its width, or fall below zero, at a host cluster.
  case refcountRange(cluster: UInt64)
  /// A cluster about to be written lies inside metadata.
  case overlapsMetadata(cluster: UInt64)
  /// The request reaches beyond the virtual size or is not a multiple of 512 bytes.
  case badRequest

  /// The errno that the guest gets.
  package var errno: Errno {
    switch self {
    case .io(_, _, let errno): errno == .noSpace ? .noSpace : errno
    case .noSpace: .noSpace
    case .readOnly: .readOnly
    case .badRequest: .invalid
    case .unsupported: .notSupported
    case .format, .markedCorrupt, .markedDirty, .writesStopped, .refcountRange,
      .overlapsMetadata:
      .io
    }
  }

  /// Whether the metadata itself is at fault, so that writing must stop.
  package var isCorruption: Bool {
    switch self {
    case .format, .refcountRange, .overlapsMetadata: true
    default: false
    }
  }

  /// What failed and why, in the form of an error line after the image's name.
  package var message: String {
    switch self {
    case .format(let error): error.message
    case .io(let operation, let offset, let errno):
      "host \(operation.rawValue) at \(hex(offset.bytes)): errno \(errno.code)"
    case .unsupported(let feature):
      "the image has \(feature.rawValue), which this version of qublk does not support yet"
    case .markedCorrupt:
      "image is marked corrupt: repair it with \"qemu-img check -r all\" or add it with --read-only"
    case .markedDirty:
      "image is marked dirty, its refcounts may be wrong: "
        + "repair it with \"qemu-img check -r all\" or add it with --read-only"
    case .readOnly: "image is read-only"
    case .writesStopped: "writing was stopped by an earlier failure"
    case .noSpace: "no free host cluster"
    case .refcountRange(let cluster):
      "refcount of host cluster \(cluster) is out of range; marked corrupt"
    case .overlapsMetadata(let cluster):
      "host cluster \(cluster) would be written as data but holds metadata; marked corrupt"
    case .badRequest: "request is outside of the disk or not a multiple of 512 bytes"
    }
  }
}
