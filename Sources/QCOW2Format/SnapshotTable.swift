package import BlockCore

/// One entry of the snapshot table, without the bytes of its ID and name.
///
/// Entries have variable length: the fixed part, extra data, ID, name, padding to 8 bytes.
/// Source: qcow2 specification, "Snapshots".
package struct SnapshotEntry: Equatable, Sendable {
  /// The bytes of the fixed part.
  package static let fixedLength = 40
  /// The bytes of extra data that are defined.
  package static let knownExtraLength = 24
  /// The least extra data of a version 3 entry: VM state size and disk size.
  package static let leastExtraLengthV3: UInt32 = 16
  /// QEMU's limit for the extra data of one entry.
  package static let mostExtraLength: UInt32 = 1024
  /// QEMU's limit for the whole table.
  package static let mostTableLength: UInt64 = 64 << 20

  package let l1Table: HostOffset
  /// In entries.
  package let l1Size: UInt32
  package let idLength: UInt16
  package let nameLength: UInt16
  /// Since the epoch.
  package let seconds: UInt32
  package let nanoseconds: UInt32
  /// How long the guest had been running, in nanoseconds.
  package let guestClock: UInt64
  package let extraLength: UInt32
  /// In bytes; see ``applyExtra(_:)``.
  package private(set) var vmStateSize: UInt64
  /// Nil if the entry has none: then the disk has the size of the header.
  package private(set) var diskSize: UInt64?
  /// The instruction count of record and replay; nil if there is none.
  package private(set) var instructionCount: UInt64?

  /// Reads the fixed part, ``fixedLength`` bytes.
  package init(parsing base: UnsafeRawPointer) {
    l1Table = HostOffset(base.be64(0))
    l1Size = base.be32(8)
    idLength = base.be16(12)
    nameLength = base.be16(14)
    seconds = base.be32(16)
    nanoseconds = base.be32(20)
    guestClock = base.be64(24)
    vmStateSize = UInt64(base.be32(32))
    extraLength = base.be32(36)
  }

  /// Takes over the fields of the extra data; `base` has ``knownExtraLength`` readable bytes, of which
  /// the first ``extraLength`` count.
  package mutating func applyExtra(_ base: UnsafeRawPointer) {
    if extraLength >= 8 { vmStateSize = base.be64(0) }
    if extraLength >= 16 { diskSize = base.be64(8) }
    if extraLength >= 24 && base.be64(16) != UInt64.max { instructionCount = base.be64(16) }
  }

  /// The bytes of the entry without the padding after it; below 2^33.
  package var length: UInt64 {
    UInt64(Self.fixedLength) + UInt64(extraLength) + UInt64(idLength) + UInt64(nameLength)
  }
  /// Where the ID starts, counted from the start of the entry; the name follows it.
  package var idPosition: UInt64 { UInt64(Self.fixedLength) + UInt64(extraLength) }
}
