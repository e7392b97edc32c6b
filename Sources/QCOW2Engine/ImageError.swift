package import BlockCore
package import QCOW2Format

/// What the engine was doing with the host file when it failed.
package enum HostOperation: String, Sendable {
  case read, write, zero, sync, length, resize
}

/// Something that an image needs and that was not opened with it.
package enum MissingSource: String, Sendable {
  case backingFile = "a backing file"
  case cipher = "encryption"
  case dataFile = "an external data file"
}

/// Why an image cannot be opened, or a request not be carried out.
package enum ImageError: Error, Sendable {
  /// The metadata breaks the format.
  case format(FormatError)
  /// A host operation failed at `offset`.
  case io(HostOperation, at: HostOffset, Errno)
  /// The image cannot be served without something that the caller did not give.
  case missing(MissingSource)
  /// Compressed bytes that do not inflate to one cluster.
  case badCompressedData(at: HostOffset)
  /// The data must be transformed: the request has to come again with plain memory.
  case needsMemory
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
    case .missing, .needsMemory: .notSupported
    case .format, .markedCorrupt, .markedDirty, .writesStopped, .refcountRange,
      .overlapsMetadata, .badCompressedData:
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
    case .missing(let source): "the image has \(source.rawValue), which was not opened with it"
    case .badCompressedData(let offset):
      "compressed cluster at host offset \(hex(offset.bytes)) does not inflate to one cluster"
    case .needsMemory: "the data has to be transformed in memory"
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
