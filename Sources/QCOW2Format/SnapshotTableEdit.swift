public import BlockCore

/// A snapshot that is to get an entry in the table.
public struct NewSnapshot: Equatable, Sendable {
  /// The longest name that QEMU keeps, in bytes.
  public static let mostNameBytes = 255

  /// Where the snapshot's L1 table is.
  public var l1Table: HostOffset
  /// In entries.
  public var l1Size: UInt32
  /// At most 65535 bytes.
  public var id: String
  /// At most 65535 bytes.
  public var name: String
  /// Since the epoch.
  public var seconds: UInt32
  /// Below a second.
  public var nanoseconds: UInt32
  /// How long the guest had been running, in nanoseconds.
  public var guestClock: UInt64
  /// In bytes.
  public var vmStateSize: UInt64
  /// In bytes.
  public var diskSize: UInt64
  /// The instruction count of record and replay; nil if there is none.
  public var instructionCount: UInt64?

  /// A snapshot without VM state; as in those of `qemu-img`, the instruction count is 0.
  public init(
    l1Table: HostOffset, l1Size: UInt32, id: String, name: String, seconds: UInt32,
    nanoseconds: UInt32, diskSize: UInt64
  ) {
    self.l1Table = l1Table
    self.l1Size = l1Size
    self.id = id
    self.name = name
    self.seconds = seconds
    self.nanoseconds = nanoseconds
    self.diskSize = diskSize
    guestClock = 0
    vmStateSize = 0
    instructionCount = 0
  }

  /// The bytes of the entry, without the padding after it.
  ///
  /// Source: qcow2 specification, "Snapshots".
  public var bytes: [UInt8] {
    let (id, name) = (Array(id.utf8), Array(name.utf8))
    var bytes = bigEndianBytes(l1Table.bytes) + bigEndianBytes(l1Size)
    bytes +=
      bigEndianBytes(UInt16(clamping: id.count)) + bigEndianBytes(UInt16(clamping: name.count))
    bytes += bigEndianBytes(seconds) + bigEndianBytes(nanoseconds) + bigEndianBytes(guestClock)
    bytes += bigEndianBytes(UInt32(clamping: vmStateSize))
    bytes += bigEndianBytes(UInt32(SnapshotEntry.knownExtraLength))
    bytes += bigEndianBytes(vmStateSize) + bigEndianBytes(diskSize)
    bytes += bigEndianBytes(instructionCount ?? UInt64.max)
    return bytes + id + name
  }
}

/// A snapshot table that is to be written anew: entries that stay keep every byte they have [SNAP-2].
public struct SnapshotTableEdit: Equatable, Sendable {
  /// Each without the padding after it.
  private var entries: [[UInt8]]

  /// The table as it is.
  ///
  /// - Parameters:
  ///   - snapshots: Its entries, all read from it.
  ///   - bytes: From the start of the first to the end of the last entry.
  /// - Throws: ``FormatError/truncated(structure:needed:available:)`` if there are fewer bytes.
  public init(_ snapshots: [Snapshot], in bytes: [UInt8]) throws(FormatError) {
    var entries: [[UInt8]] = []
    var start: UInt64 = 0
    for snapshot in snapshots {
      let end = start + snapshot.entry.length
      guard end <= UInt64(bytes.count) else {
        throw .truncated(
          structure: "snapshot table", needed: end, available: UInt64(bytes.count))
      }
      entries.append(Array(bytes[Int(start)..<Int(end)]))
      start += snapshot.entry.paddedLength
    }
    self.entries = entries
  }

  /// The number of entries.
  public var count: Int { entries.count }

  /// Puts an entry behind all others.
  public mutating func append(_ snapshot: NewSnapshot) { entries.append(snapshot.bytes) }

  /// Puts other bytes in the place of an entry: those of ``SnapshotEntry/leading(to:entries:vmStateSize:diskSize:of:)``.
  public mutating func replace(at index: Int, with bytes: (_ old: [UInt8]) -> [UInt8]) {
    entries[index] = bytes(entries[index])
  }

  /// Takes an entry out.
  public mutating func remove(at index: Int) { entries.remove(at: index) }

  /// The new table: each entry begins at a multiple of 8 bytes.
  public var bytes: [UInt8] {
    var bytes: [UInt8] = []
    for entry in entries {
      bytes += [UInt8](repeating: 0, count: (8 - bytes.count % 8) % 8)
      bytes += entry
    }
    return bytes
  }

  /// Whether the format allows so many entries, and a table so long.
  public var isWithinLimits: Bool {
    let length = entries.reduce(UInt64(0)) { ($0 + 7) & ~7 + UInt64($1.count) }
    return entries.count <= Int(FormatLimit.snapshots) && length <= SnapshotEntry.mostTableLength
  }
}

extension Snapshot {
  /// An ID that none of the snapshots has: by one larger than the largest number among theirs, as QEMU's.
  public static func newID(beside snapshots: [Snapshot]) -> String {
    let largest = snapshots.map { Self.leadingNumber($0.id) }.max() ?? 0
    return String(largest == .max ? largest : largest + 1)
  }

  /// The number that a text begins with; 0 if it begins with none.
  private static func leadingNumber(_ text: String) -> UInt64 {
    var value: UInt64 = 0
    for byte in text.utf8 {
      guard byte >= 48, byte <= 57 else { break }
      let (product, overflow) = value.multipliedReportingOverflow(by: 10)
      let (sum, carry) = product.addingReportingOverflow(UInt64(byte - 48))
      if overflow || carry { return .max }
      value = sum
    }
    return value
  }
}
