public import BlockCore

/// One entry of the snapshot table, without the bytes of its ID and name.
///
/// Entries have variable length: the fixed part, extra data, ID, name, padding to 8 bytes.
/// Source: qcow2 specification, "Snapshots".
public struct SnapshotEntry: Equatable, Sendable {
  /// The bytes of the fixed part.
  public static let fixedLength = 40
  /// The bytes of extra data that are defined.
  public static let knownExtraLength = 24
  /// The least extra data of a version 3 entry: VM state size and disk size.
  public static let leastExtraLengthV3: UInt32 = 16
  /// QEMU's limit for the extra data of one entry.
  public static let mostExtraLength: UInt32 = 1024
  /// QEMU's limit for the whole table.
  public static let mostTableLength: UInt64 = 64 << 20

  public let l1Table: HostOffset
  /// In entries.
  public let l1Size: UInt32
  public let idLength: UInt16
  public let nameLength: UInt16
  /// Since the epoch.
  public let seconds: UInt32
  public let nanoseconds: UInt32
  /// How long the guest had been running, in nanoseconds.
  public let guestClock: UInt64
  public let extraLength: UInt32
  /// In bytes; see ``applyExtra(_:)``.
  public private(set) var vmStateSize: UInt64
  /// Nil if the entry has none: then the disk has the size of the header.
  public private(set) var diskSize: UInt64?
  /// The instruction count of record and replay; nil if there is none.
  public private(set) var instructionCount: UInt64?

  /// Reads the fixed part, ``fixedLength`` bytes.
  public init(parsing base: UnsafeRawPointer) {
    l1Table = unsafe HostOffset(base.be64(0))
    l1Size = unsafe base.be32(8)
    idLength = unsafe base.be16(12)
    nameLength = unsafe base.be16(14)
    seconds = unsafe base.be32(16)
    nanoseconds = unsafe base.be32(20)
    guestClock = unsafe base.be64(24)
    vmStateSize = unsafe UInt64(base.be32(32))
    extraLength = unsafe base.be32(36)
  }

  /// Takes over the fields of the extra data; `base` has ``knownExtraLength`` readable bytes, of
  /// which the first ``extraLength`` count.
  public mutating func applyExtra(_ base: UnsafeRawPointer) {
    if extraLength >= 8 { vmStateSize = unsafe base.be64(0) }
    if extraLength >= 16 { diskSize = unsafe base.be64(8) }
    if unsafe extraLength >= 24 && base.be64(16) != UInt64.max {
      instructionCount = unsafe base.be64(16)
    }
  }

  /// The bytes of the entry without the padding after it; below 2^33.
  public var length: UInt64 {
    UInt64(Self.fixedLength) + UInt64(extraLength) + UInt64(idLength) + UInt64(nameLength)
  }
  /// Where the ID starts, counted from the start of the entry; the name follows it.
  public var idPosition: UInt64 { UInt64(Self.fixedLength) + UInt64(extraLength) }
}
