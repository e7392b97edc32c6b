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

/// Why the size of a disk cannot be changed.
package enum ResizeObstacle: Sendable, Equatable {
  /// Not a multiple of 512.
  case partialSector
  /// The L1 table would exceed ``FormatLimit/l1Bytes``; the largest size that it can map.
  case tooLarge(most: UInt64)
  /// Version 2 need not record at which size a snapshot was taken.
  case snapshotsInVersion2
  /// A persistent bitmap cannot get the size.
  case bitmaps
  /// The file is a block device, whose size is not ours to change.
  case blockDevice
  /// Preallocation was asked for, and the disk would not become larger.
  case preallocates(from: UInt64)
  /// Nothing of the disk would be left.
  case notPositive
  /// The disk would become smaller, which was not asked for.
  case shrinks(from: UInt64)
  /// The disk would become smaller, and a device shows it.
  case shrinksServed(from: UInt64)

  /// The reason as it stands in messages.
  package var text: String {
    switch self {
    case .partialSector: "the new size is not a multiple of 512"
    case .tooLarge(let most): "the largest size with this cluster size is \(most)"
    case .snapshotsInVersion2: "it has internal snapshots and is of version 2"
    case .bitmaps: "a persistent bitmap would be too large, or cannot be read: remove it first"
    case .blockDevice: "a raw disk on a block device has the size of the device"
    case .preallocates(let size):
      "preallocation can only be used for growing images, and the present size is \(size)"
    case .notPositive: "the new size must be positive"
    case .shrinks(let size):
      "it is smaller than the present size of \(size): use the --shrink option to perform a shrink "
        + "operation, which deletes all data beyond the new end"
    case .shrinksServed(let size):
      "it is smaller than the present size of \(size), and a device shows the disk: take the device "
        + "away first (\"qublk del\")"
    }
  }
}

/// Why an image cannot be opened, or a request not be carried out.
package enum ImageError: Error, Sendable {
  /// The metadata breaks the format.
  case format(FormatError)
  /// The metadata breaks the format in a way that still lets the image be read: it is refused for
  /// writing.
  case damaged(FormatError)
  /// The file ends before its L1 table, so that nothing can be read.
  case cutBeforeTable(FormatError)
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
  case refcountRange(cluster: HostCluster)
  /// A host cluster has as many references as its refcount can say, and a snapshot needs one more.
  case tooManyReferences(cluster: HostCluster, most: UInt64)
  /// The image has as many snapshots, or as long a table of them, as the format allows.
  case snapshotTableFull
  /// The tables of an internal snapshot break the format.
  case brokenSnapshot(id: String, FormatError)
  /// A snapshot was taken without VM state.
  case noVMState(id: String)
  /// An L1 table has no room for so many bytes of VM state.
  case vmStateTooLarge(bytes: UInt64, most: UInt64)
  /// The disk of an image with persistent bitmaps cannot get the size that a snapshot has.
  case snapshotSizeWithBitmaps(found: UInt64, wanted: UInt64)
  /// The text is no name for a snapshot: its bytes, and the most there may be.
  case badSnapshotName(bytes: Int, most: Int)
  /// A cluster about to be written lies inside metadata.
  case overlapsMetadata(cluster: HostCluster)
  /// The metadata of a backing file breaks the format: nothing is wrong with this image.
  indirect case brokenBacking(ImageError)
  /// A write into a cluster that the image has found no room on the host.
  indirect case noRoomInPlace(ImageError)
  /// The request reaches beyond the virtual size or is not a multiple of 512 bytes.
  case badRequest
  /// No internal snapshot is the one asked for.
  case noSuchSnapshot(SnapshotSelector, existing: [Snapshot])
  /// The guest's data lies in an external data file, which has no snapshots.
  case snapshotWithDataFile
  /// The host has no memory for a table or a cache of so many bytes.
  case noMemory(bytes: Int)
  /// The header cluster has no place for another name of the backing file.
  case headerFull
  /// The disk cannot get the size that was asked for.
  case cannotResize(to: UInt64, ResizeObstacle)
  /// A persistent bitmap cannot be changed or read as was asked for.
  case bitmapRefused(BitmapRefusal)

  /// The errno that the guest gets.
  package var errno: Errno {
    switch self {
    case .io(_, _, let errno): errno.forGuest
    case .noSpace: .noSpace
    case .readOnly: .readOnly
    case .badRequest: .invalid
    case .missing, .needsMemory, .snapshotWithDataFile, .headerFull, .tooManyReferences,
      .snapshotTableFull, .snapshotSizeWithBitmaps:
      .notSupported
    case .badSnapshotName: .invalid
    case .noSuchSnapshot, .noVMState: .noEntry
    case .noMemory: .noMemory
    case .cannotResize(_, .tooLarge), .vmStateTooLarge: .fileTooBig
    case .cannotResize(_, .partialSector), .cannotResize(_, .notPositive): .invalid
    case .cannotResize: .notSupported
    case .bitmapRefused(.unknown): .noEntry
    case .bitmapRefused: .invalid
    case .brokenBacking(let error), .noRoomInPlace(let error): error.errno
    case .format, .damaged, .cutBeforeTable, .markedCorrupt, .markedDirty, .writesStopped,
      .refcountRange, .overlapsMetadata, .badCompressedData, .brokenSnapshot:
      .io
    }
  }

  /// Whether the image's own metadata is at fault, so that writing must stop.
  package var isCorruption: Bool {
    switch self {
    case .format, .refcountRange, .overlapsMetadata: true
    default: false
    }
  }

  /// Whether bytes of the image itself are at fault, metadata or compressed data.
  var isDamage: Bool {
    if case .badCompressedData = self { return true }
    return isCorruption
  }

  /// What failed and why, in the form of an error line after the image's name.
  package var message: String {
    switch self {
    case .format(let error): error.message
    case .damaged(let error):
      "\(error.message): not opened for writing: repair the image with \"qublk check -r all\", "
        + "or open it read-only, which reads all that the damage does not concern"
    case .cutBeforeTable(let error):
      "\(error.message): the file was cut: copy it anew, or let \"qublk check -r all\" give it an empty "
        + "table, which reads as zeros"
    case .io(let operation, let offset, let errno):
      "host \(operation.rawValue) at \(hex(offset.bytes)): \(errno)"
    case .missing(let source): "the image has \(source.rawValue), which was not opened with it"
    case .badCompressedData(let offset):
      "compressed cluster at host offset \(hex(offset.bytes)) does not inflate to one cluster"
    case .needsMemory: "the data has to be transformed in memory"
    case .markedCorrupt:
      "image is marked corrupt: \"qublk check -r all\" may repair it; if that leaves errors, add it with "
        + "--read-only and copy the data off"
    case .markedDirty:
      "image is marked dirty, its refcounts may be wrong: "
        + "repair it with \"qublk check -r all\" or add it with --read-only"
    case .readOnly: "image is read-only"
    case .writesStopped: "writing was stopped by an earlier failure"
    case .noSpace: "no free host cluster"
    case .refcountRange(let cluster):
      "refcount of host cluster \(cluster.number) is out of range"
    case .tooManyReferences(let cluster, let most):
      "host cluster \(cluster.number) has \(most) references, the most that its refcount can count: delete a "
        + "snapshot, or copy the image to one with larger refcounts (refcount_bits=16)"
    case .snapshotTableFull:
      "the snapshot table is full: at most \(FormatLimit.snapshots) snapshots in "
        + "\(SnapshotEntry.mostTableLength) bytes: delete a snapshot"
    case .brokenSnapshot(let id, let problem):
      "snapshot \(id): \(problem.message): repair the image with \"qublk check -r all\""
    case .noVMState(let id): "snapshot \(id) has no VM state"
    case .vmStateTooLarge(let bytes, let most):
      "the VM state has \(bytes) bytes, expected at most \(most): the L1 table has no room for more"
    case .snapshotSizeWithBitmaps(let found, let wanted):
      "the disk has \(found) bytes and the snapshot \(wanted): an image with persistent bitmaps cannot "
        + "change its size: remove the bitmaps (\"qublk bitmap --remove\")"
    case .badSnapshotName(let bytes, let most):
      "the name of the snapshot has \(bytes) bytes, expected at most \(most)"
    case .overlapsMetadata(let cluster):
      "host cluster \(cluster.number) would be written as data but holds metadata"
    case .brokenBacking(let error): "backing file: \(error.message)"
    case .noRoomInPlace(let error): error.message
    case .badRequest: "request is outside of the disk or not a multiple of 512 bytes"
    case .noSuchSnapshot(let selector, let existing):
      "no internal snapshot has \(selector.text): " + list(existing)
    case .headerFull: "the header has no room for another name of the backing file"
    case .snapshotWithDataFile: "an image with an external data file has no internal snapshots"
    case .noMemory(let bytes): "there is no memory for \(bytes) bytes"
    case .cannotResize(let size, let obstacle):
      "the size cannot be changed to \(size): \(obstacle.text)"
    case .bitmapRefused(let refusal): refusal.text
    }
  }
}

/// The snapshots that there are, for a message: the first few with ID and name.
private func list(_ snapshots: [Snapshot]) -> String {
  if snapshots.isEmpty { return "the image has none" }
  let shown = snapshots.prefix(20).map { "\($0.id) \"\($0.name)\"" }.joined(separator: ", ")
  let more = snapshots.count > 20 ? " and \(snapshots.count - 20) more" : ""
  return "the image has \(shown)\(more)"
}
