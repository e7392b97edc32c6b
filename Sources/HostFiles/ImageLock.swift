package import BlockCore
import CPlatform
import Glibc

/// What a process does to an image, in QEMU's terms (`BLK_PERM_*`); the raw value is QEMU's.
package struct ImagePermissions: OptionSet, Sendable {
  package let rawValue: UInt8

  package init(rawValue: UInt8) { self.rawValue = rawValue }

  /// Reads and expects that the contents make sense.
  package static let consistentRead = Self(rawValue: 1 << 0)
  /// Changes what is read.
  package static let write = Self(rawValue: 1 << 1)
  /// Writes what is there already.
  package static let writeUnchanged = Self(rawValue: 1 << 2)
  /// Changes the length.
  package static let resize = Self(rawValue: 1 << 3)

  /// The single permissions, in QEMU's order.
  static let each: [Self] = [.consistentRead, .write, .writeUnchanged, .resize]

  /// The position of a single permission: the offset of its byte in both lock ranges.
  var bit: Int64 { Int64(rawValue.trailingZeroBitCount) }

  /// QEMU's word for a single permission, for messages.
  package var name: String {
    switch self {
    case .consistentRead: "consistent read"
    case .write: "write"
    case .writeUnchanged: "write unchanged"
    case .resize: "resize"
    default: "permissions \(rawValue)"
    }
  }
}

/// Why an image could not be locked.
package enum ImageLockError: Error, Sendable {
  /// Another process does `permission`, which is not to be shared.
  case inUse(permission: ImagePermissions, holder: LockHolder?)
  /// Another process does not allow `permission`, which is wanted.
  case refused(permission: ImagePermissions, holder: LockHolder?)
  /// The lock call failed; ENOLCK, for one, where a network file system has no lock service.
  case system(Errno)
}

/// The image locks of QEMU's `file-posix.c`, byte for byte, so that QEMU's tools and qublk keep out
/// of each other's way [SEC-6].
///
/// Each permission has two bytes in the file's lock space. A process that uses the permission has a
/// shared lock at 100 + bit; a process that denies it to others has one at 200 + bit. A process first
/// takes all its locks (shared locks never collide), then tests the opposite bytes. Two processes that
/// start at once may both give up, but never both go on. The bytes are fixed, whatever the file's length
/// [SEC-7], and exist only in lock space: nothing is written.
///
/// A lock belongs to the open file description: it ends when the last copy of the descriptor is
/// closed, survives fork, and can be handed to another process with the descriptor.
package enum ImageLock {
  /// The ways to use an image.
  package enum Use: Sendable {
    /// Reads, writes and grows; nobody else may write or grow. What QEMU holds for a qcow2 in use.
    case writer
    /// Reads; others may too, but nobody may write or grow.
    case reader

    var permissions: ImagePermissions {
      switch self {
      case .writer: [.consistentRead, .write, .resize]
      case .reader: [.consistentRead]
      }
    }

    /// What others must not do meanwhile.
    var unshared: ImagePermissions { [.write, .resize] }
  }

  private static let permissionBase: Int64 = 100
  private static let unsharedBase: Int64 = 200

  /// Locks the file behind `descriptor` for `use`, without waiting; on failure nothing stays locked.
  ///
  /// The descriptor needs read access only. Must not be called twice for one open file description.
  package static func acquire(_ use: Use, descriptor: Int32) throws(ImageLockError) {
    do {
      try lock(use, descriptor)
      try test(use, descriptor)
    } catch {
      release(descriptor)
      throw error
    }
  }

  /// Whether `use` would be possible now, without taking anything.
  package static func probe(_ use: Use, descriptor: Int32) throws(ImageLockError) {
    try test(use, descriptor)
  }

  private static func lock(_ use: Use, _ descriptor: Int32) throws(ImageLockError) {
    for permission in ImagePermissions.each {
      if use.permissions.contains(permission) {
        try share(descriptor, permissionBase + permission.bit)
      }
      if use.unshared.contains(permission) {
        try share(descriptor, unsharedBase + permission.bit)
      }
    }
  }

  private static func test(_ use: Use, _ descriptor: Int32) throws(ImageLockError) {
    for permission in ImagePermissions.each {
      if use.permissions.contains(permission),
        try isLocked(descriptor, unsharedBase + permission.bit)
      {
        throw .refused(permission: permission, holder: LockHolder.find(descriptor))
      }
      if use.unshared.contains(permission),
        try isLocked(descriptor, permissionBase + permission.bit)
      {
        throw .inUse(permission: permission, holder: LockHolder.find(descriptor))
      }
    }
  }

  private static func share(_ descriptor: Int32, _ byte: Int64) throws(ImageLockError) {
    if qublk_ofd_share_byte(descriptor, byte) < 0 { throw .system(Errno(errno)) }
  }

  private static func isLocked(_ descriptor: Int32, _ byte: Int64) throws(ImageLockError) -> Bool {
    let answer = qublk_ofd_byte_is_locked(descriptor, byte)
    if answer < 0 { throw .system(Errno(errno)) }
    return answer == 1
  }

  /// Gives up what ``acquire(_:descriptor:)`` took, whoever else still holds the open file description:
  /// a child of this process, or a ring that the kernel takes apart after the process has gone.
  ///
  /// Unlocking cannot fail usefully: closing the last descriptor would do the same.
  package static func release(_ descriptor: Int32) {
    for permission in ImagePermissions.each {
      _ = qublk_ofd_unlock_byte(descriptor, permissionBase + permission.bit)
      _ = qublk_ofd_unlock_byte(descriptor, unsharedBase + permission.bit)
    }
  }
}
