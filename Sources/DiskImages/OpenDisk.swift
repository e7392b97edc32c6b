package import BlockCore
package import HostFiles
package import QCOW2Engine

/// A disk that is open, whatever its format: what a device serves, and how it is looked after.
package protocol OpenDisk: AnyObject, Sendable {
  /// What messages call the disk.
  var name: String { get }
  /// What requests go to.
  var target: any BlockTarget { get }
  /// Every file of the disk; transfers know the first 255 by their number here.
  var files: [RingHostFile] { get }
  /// What ``files`` are, by the same numbers.
  var objects: [HostObject] { get }
  /// `st_dev` and `st_ino` of the file that the disk is known by; zeros if there is none.
  var identity: (device: UInt64, inode: UInt64) { get }
  /// The bytes of the unit of allocation, a power of two: the cluster, where there are clusters.
  var allocationUnit: UInt64 { get }
  /// Whether the data of requests must be transformed on its way.
  var isEncrypted: Bool { get }
  /// What the user should know about the way it was opened.
  var warnings: [String] { get }

  /// What the bytes from `offset` on are, through the backing chain, and how many are alike: 1 to
  /// `length`. True until the next request changes it.
  ///
  /// - Throws: ``ImageError/badRequest`` for a range that is empty or not inside the disk.
  func status(at offset: GuestOffset, length: UInt64) async throws(ImageError) -> BlockStatus

  /// One step of background work; call every now and then on a worker.
  func maintain() async

  /// Makes everything durable and lets go of files and locks, whether or not that worked.
  ///
  /// No request may be running.
  func close() async throws(DiskImageError)
}

extension OpenDisk {
  /// What the addresses of transfers must be multiples of, whichever file they go to.
  package var memoryAlignment: Int { files.map(\.memoryAlignment).max() ?? 1 }
}

/// What is behind a disk.
package enum DiskFormat: String, Sendable, CaseIterable {
  case qcow2
  /// A file or block device as it is.
  case raw
  /// Nothing: see ``NullDisk``.
  case null
}

extension DiskFormat {
  /// Opens a disk of this format.
  ///
  /// - Parameters:
  ///   - options: How; what does not apply to the format is not looked at.
  ///   - size: The size in bytes of a ``null`` disk.
  /// - Returns: The open disk.
  /// - Throws: Why it is not; nothing stays open then.
  package func open(
    _ options: DiskImageOptions, size: UInt64
  ) async throws(DiskImageError) -> any OpenDisk {
    switch self {
    case .qcow2: try await DiskImage.open(options)
    case .raw: try await RawDisk.open(options)
    case .null: NullDisk(size: size)
    }
  }
}
