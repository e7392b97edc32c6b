package import BlockCore

/// Something about an open disk that its administrator must know.
package struct ImageEvent: Sendable, Equatable {
  /// What kind of thing it is; repeats are counted by kind.
  package enum Kind: Int, Sendable, CaseIterable {
    /// A host file could not be read.
    case readFailed
    /// A host file could not be written, for another reason than space.
    case writeFailed
    /// A barrier failed: what was written before may be lost, so nothing is written any more.
    case syncFailed
    /// An image's own metadata or compressed data breaks the format.
    case damaged
    /// The host had no space for a request.
    case spaceLacking
    /// A request got what the host had no space for before.
    case spaceFound
    /// A persistent bitmap is no longer kept up to date.
    case bitmapDropped
    /// The refcounts of an image that was marked dirty were counted anew.
    case refcountsRebuilt
  }

  /// What the disk does from then on.
  package enum Consequence: Sendable, Equatable {
    /// The request fails, no more.
    case requestFails
    /// Nothing is changed any more; reads go on.
    case writingStops
    /// The same, and the header says that the image is corrupt.
    case markedCorrupt
  }

  package var kind: Kind
  /// The file that it is about.
  package var object: HostObject
  /// What was done with the file; nil if that is not what failed.
  package var operation: HostOperation?
  /// Where in the file: of the transfer, or of the entry that breaks the format.
  package var offset: HostOffset?
  /// The bytes of the transfer; 0 if it has none.
  package var length: UInt64 = 0
  /// Where on the guest's disk, if that is known.
  package var guest: GuestOffset?
  package var errno: Errno?
  /// What is wrong, in words, where an errno does not say it.
  package var problem: String?
  package var consequence = Consequence.requestFails

  package init(
    _ kind: Kind, _ object: HostObject, operation: HostOperation? = nil,
    offset: HostOffset? = nil, length: UInt64 = 0, errno: Errno? = nil, problem: String? = nil
  ) {
    self.kind = kind
    self.object = object
    self.operation = operation
    self.offset = offset
    self.length = length
    self.errno = errno
    self.problem = problem
  }

  /// A transfer or a barrier that failed.
  package init(
    _ operation: HostOperation, _ object: HostObject, offset: HostOffset, length: UInt64,
    _ errno: Errno
  ) {
    let kind: Kind =
      switch operation {
      case .read, .length: .readFailed
      case .write, .zero, .resize: .writeFailed
      case .sync: .syncFailed
      }
    self.init(
      kind, object, operation: operation, offset: kind == .syncFailed ? nil : offset,
      length: length, errno: errno)
    if kind == .syncFailed { consequence = .writingStops }
  }
}

/// A host file by its part in the disk and its path.
package struct HostObject: Sendable, Equatable {
  /// The part that a file has in a disk.
  package enum Role: String, Sendable {
    case image
    case dataFile = "data file"
    case backingFile = "backing file"
  }

  package var role: Role
  package var path: String

  package init(_ role: Role, path: String) {
    self.role = role
    self.path = path
  }
}
