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
  /// In bytes.
  public let vmStateSize: UInt64
  /// Nil if the entry has none: then the disk has the size of the header.
  public let diskSize: UInt64?
  /// The instruction count of record and replay; nil if there is none.
  public let instructionCount: UInt64?

  /// Byte positions of the fields; those of the extra data counted from its start.
  private enum Field {
    static let l1Table = 0
    static let l1Size = 8
    static let idLength = 12
    static let nameLength = 14
    static let seconds = 16
    static let nanoseconds = 20
    static let guestClock = 24
    static let vmStateSize = 32
    static let extraLength = 36
    enum Extra {
      static let vmStateSize = 0
      static let diskSize = 8
      static let instructionCount = 16
    }
  }

  /// Reads an entry without its texts.
  ///
  /// - Parameter bytes: ``fixedLength`` and ``knownExtraLength`` bytes at least; those that lie
  ///   behind the extra data of the entry do not count.
  public init(parsing bytes: Span<UInt8>) {
    l1Table = HostOffset(bytes.be64(Field.l1Table))
    l1Size = bytes.be32(Field.l1Size)
    idLength = bytes.be16(Field.idLength)
    nameLength = bytes.be16(Field.nameLength)
    seconds = bytes.be32(Field.seconds)
    nanoseconds = bytes.be32(Field.nanoseconds)
    guestClock = bytes.be64(Field.guestClock)
    let extraLength = bytes.be32(Field.extraLength)
    self.extraLength = extraLength
    let extra = bytes.extracting(Self.fixedLength..<bytes.count)
    vmStateSize =
      Self.extra(extra, extraLength, Field.Extra.vmStateSize)
      ?? UInt64(bytes.be32(Field.vmStateSize))
    diskSize = Self.extra(extra, extraLength, Field.Extra.diskSize)
    let count = Self.extra(extra, extraLength, Field.Extra.instructionCount)
    instructionCount = count == UInt64.max ? nil : count
  }

  /// A field of the extra data; nil if there is not so much of it.
  private static func extra(
    _ bytes: Span<UInt8>, _ length: UInt32, _ position: Int
  ) -> UInt64? {
    UInt64(length) >= UInt64(position + 8) ? bytes.be64(position) : nil
  }

  /// The bytes of the entry without the padding after it; below 2^33.
  public var length: UInt64 {
    UInt64(Self.fixedLength) + UInt64(extraLength) + UInt64(idLength) + UInt64(nameLength)
  }
  /// The bytes of the entry with the padding after it.
  public var paddedLength: UInt64 { (length + 7) & ~7 }
  /// Where the ID starts, counted from the start of the entry; the name follows it.
  public var idPosition: UInt64 { UInt64(Self.fixedLength) + UInt64(extraLength) }
  /// The bytes of ID and name.
  public var textLength: Int { Int(idLength) + Int(nameLength) }

  /// The length of the L1 table in bytes.
  public var l1Length: UInt64 { UInt64(l1Size) * 8 }
  /// Whether the L1 table is longer than one may be.
  public var isL1TooLong: Bool { l1Length > FormatLimit.l1Bytes }
  /// What is wrong with the place of the L1 table.
  public func l1Faults(_ geometry: ClusterGeometry, fileLength: UInt64 = .max) -> EntryFaults {
    EntryFaults(reserved: 0, place: l1Table.bytes, geometry, fileLength: fileLength)
  }
}

extension SnapshotEntry {
  /// Whether the entry has less extra data than its version asks for.
  public func isIncomplete(version: UInt32) -> Bool {
    version >= 3 && extraLength < Self.leastExtraLengthV3
  }

  /// The bytes of the fixed part and of as much extra data as ``completed(start:texts:diskSize:)``
  /// looks at.
  public var keptLength: Int { Self.fixedLength + Int(min(extraLength, Self.mostExtraLength)) }

  /// The same entry with all extra data that is known.
  ///
  /// What it lacks is filled in: the VM state's size from the old field, the size of the disk, no
  /// instruction count. What exceeds the limit is dropped, which no program can have read.
  ///
  /// - Parameters:
  ///   - start: The first ``keptLength`` bytes of the entry.
  ///   - texts: ID and name, ``textLength`` bytes.
  ///   - diskSize: By the header.
  /// - Returns: The bytes of the entry, without the padding after it.
  public func completed(
    start: Span<UInt8>, texts: Span<UInt8>, diskSize: UInt64
  ) -> [UInt8] {
    var extra = bigEndianBytes(vmStateSize) + bigEndianBytes(self.diskSize ?? diskSize)
    extra += bigEndianBytes(instructionCount ?? UInt64.max)
    let known = Self.fixedLength + Self.knownExtraLength
    if keptLength > known { extra += start.copy(known..<keptLength) }
    return start.copy(0..<Field.extraLength) + bigEndianBytes(UInt32(extra.count)) + extra
      + texts.copy(0..<textLength)
  }

  /// The same entry with another L1 table, which has another VM state; all else stays.
  ///
  /// Extra data that is known and missing is filled in, so that the size of the VM state has its 64 bits.
  ///
  /// - Parameters:
  ///   - l1Table: The host offset of the other table.
  ///   - l1Size: In entries.
  ///   - vmStateSize: In bytes.
  ///   - diskSize: In bytes, by the header: for an entry that has no size of its own.
  ///   - old: The bytes of this entry, all ``length`` of them.
  /// - Returns: The bytes of the new entry, without the padding after it.
  public func leading(
    to l1Table: HostOffset, entries l1Size: UInt32, vmStateSize: UInt64, diskSize: UInt64,
    of old: [UInt8]
  ) -> [UInt8] {
    let span = old.span
    var bytes = completed(
      start: span.extracting(0..<Int(idPosition)),
      texts: span.extracting(Int(idPosition)..<Int(length)),
      diskSize: diskSize)
    let fields: [(Int, [UInt8])] = [
      (Field.l1Table, bigEndianBytes(l1Table.bytes)), (Field.l1Size, bigEndianBytes(l1Size)),
      (Field.vmStateSize, bigEndianBytes(UInt32(clamping: vmStateSize))),
      (Self.fixedLength + Field.Extra.vmStateSize, bigEndianBytes(vmStateSize)),
    ]
    for (position, value) in fields {
      bytes.replaceSubrange(position..<position + value.count, with: value)
    }
    return bytes
  }
}
