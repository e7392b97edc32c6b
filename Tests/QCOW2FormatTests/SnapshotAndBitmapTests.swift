import BlockCore
import QCOW2Format
import Testing

/// Big-endian bytes, written down field by field.
private func bytes(_ fields: [(UInt64, Int)]) -> [UInt8] {
  fields.flatMap { value, width in
    (0..<width).map { UInt8(truncatingIfNeeded: value >> UInt64(8 * (width - 1 - $0))) }
  }
}

@Suite struct SnapshotEntryTests {
  private func entry(extraLength: UInt64) -> SnapshotEntry {
    let fixed = bytes([
      (0x30000, 8), (7, 4), (1, 2), (4, 2), (1_700_000_000, 4), (5, 4), (123_456, 8), (99, 4),
      (extraLength, 4),
    ])
    let extra = bytes([(1 << 33, 8), (1 << 40, 8), (42, 8)])
    return (fixed + extra).withUnsafeBytes { raw in
      guard let base = raw.baseAddress else { preconditionFailure("not empty") }
      var entry = SnapshotEntry(parsing: base)
      entry.applyExtra(base + SnapshotEntry.fixedLength)
      return entry
    }
  }

  @Test func theFixedPartIsRead() {
    let entry = entry(extraLength: 0)
    #expect(entry.l1Table == HostOffset(0x30000))
    #expect(entry.l1Size == 7)
    #expect((entry.idLength, entry.nameLength) == (1, 4))
    #expect((entry.seconds, entry.nanoseconds) == (1_700_000_000, 5))
    #expect(entry.guestClock == 123_456)
    #expect(entry.vmStateSize == 99)
    #expect(entry.diskSize == nil && entry.instructionCount == nil)
    #expect(entry.length == 45)
  }

  @Test func extraDataCountsAsFarAsItGoes() {
    #expect(entry(extraLength: 8).vmStateSize == 1 << 33)
    #expect(entry(extraLength: 8).diskSize == nil)
    #expect(entry(extraLength: 16).diskSize == 1 << 40)
    #expect(entry(extraLength: 16).instructionCount == nil)
    #expect(entry(extraLength: 24).instructionCount == 42)
    #expect(entry(extraLength: UInt64(UInt32.max)).length == 40 + UInt64(UInt32.max) + 5)
  }
}

@Suite struct BitmapDirectoryTests {
  private let geometry = ClusterGeometry(clusterBits: 16, refcountOrder: 4)

  /// A sound extension with one field changed.
  private func header(
    _ count: UInt64 = 1, _ reserved: UInt64 = 0, _ length: UInt64 = 32, _ offset: UInt64 = 0x50000
  ) throws(FormatError) {
    let found = try BitmapsExtension(
      parsing: bytes([(count, 4), (reserved, 4), (length, 8), (offset, 8)]).span)
    try found.validate(geometry)
  }

  @Test func everyFieldOfTheExtensionIsChecked() throws {
    try header()
    try header(65535, 0, 64 << 20, 1 << 55)
    #expect(throws: FormatError.self) { try header(0) }
    #expect(throws: FormatError.self) { try header(65536) }
    #expect(throws: FormatError.self) { try header(1, 1) }
    #expect(throws: FormatError.self) { try header(1, 0, 0) }
    #expect(throws: FormatError.self) { try header(1, 0, 64 << 20 + 1) }
    #expect(throws: FormatError.self) { try header(1, 0, 32, 0) }
    #expect(throws: FormatError.self) { try header(1, 0, 32, 0x50200) }
    #expect(throws: FormatError.self) { try header(1, 0, 32, 1 << 56) }
    #expect(throws: FormatError.self) { try BitmapsExtension(parsing: [1, 2, 3].span) }
  }

  /// A sound entry for a disk of 1 GiB with one field changed.
  private func entry(
    table: UInt64 = 0x60000, size: UInt64 = 1, flags: UInt64 = 2, type: UInt64 = 1,
    granularity: UInt64 = 16, name: UInt64 = 3, extra: UInt64 = 0, diskSize: UInt64 = 1 << 30
  ) throws(FormatError) {
    let raw = bytes([
      (table, 8), (size, 4), (flags, 4), (type, 1), (granularity, 1), (name, 2), (extra, 4),
    ])
    let entry = raw.withUnsafeBytes { buffer in
      guard let base = buffer.baseAddress else { preconditionFailure("not empty") }
      return BitmapEntry(parsing: base)
    }
    #expect(entry.length == (24 + name + extra + 7) / 8 * 8)
    try entry.validate(geometry, diskSize: diskSize)
  }

  @Test func everyFieldOfAnEntryIsChecked() throws {
    try entry()
    try entry(size: 4, granularity: 9)
    try entry(size: 5, flags: 1, granularity: 9)
    try entry(flags: 7, name: 1023, extra: 100)
    #expect(throws: FormatError.self) { try entry(table: 0) }
    #expect(throws: FormatError.self) { try entry(table: 0x60200) }
    #expect(throws: FormatError.self) { try entry(table: 1 << 60) }
    #expect(throws: FormatError.self) { try entry(size: 0) }
    #expect(throws: FormatError.self) { try entry(size: 2) }
    #expect(throws: FormatError.self) { try entry(size: 3, granularity: 9) }
    #expect(throws: FormatError.self) { try entry(size: 8193, flags: 1) }
    #expect(throws: FormatError.self) { try entry(size: UInt64(UInt32.max), flags: 1) }
    #expect(throws: FormatError.self) { try entry(flags: 8) }
    #expect(throws: FormatError.self) { try entry(type: 0) }
    #expect(throws: FormatError.self) { try entry(granularity: 8) }
    #expect(throws: FormatError.self) { try entry(granularity: 32) }
    #expect(throws: FormatError.self) { try entry(granularity: 255) }
    #expect(throws: FormatError.self) { try entry(name: 0) }
    #expect(throws: FormatError.self) { try entry(name: 1024) }
    #expect(throws: FormatError.self) { try entry(diskSize: UInt64(Int64.max)) }
  }

  @Test func tableEntriesAreAllOnesOrAClusterButNotBoth() {
    #expect(BitmapTableEntry(raw: 0).cluster == nil)
    #expect(BitmapTableEntry(raw: 1).isAllOnes)
    #expect(BitmapTableEntry(raw: 0x10000).cluster == HostOffset(0x10000))
    for raw: UInt64 in [0, 1, 0x10000] {
      #expect(BitmapTableEntry(raw: raw).faults(geometry).isEmpty)
    }
    for raw: UInt64 in [2, 1 << 8, 1 << 56, 1 << 63, 0x10001] {
      #expect(BitmapTableEntry(raw: raw).faults(geometry) == .reservedBits)
    }
  }
}
