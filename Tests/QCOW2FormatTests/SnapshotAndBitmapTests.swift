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
    let entry = BitmapEntry(parsing: raw.span)
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

  /// The bytes of an entry, padding included; what is not named is zero.
  private func item(_ name: String, extra: Int = 0, nameLength: Int? = nil) -> [UInt8] {
    let count = nameLength ?? name.utf8.count
    let fixed = bytes([
      (0x60000, 8), (1, 4), (2, 4), (1, 1), (16, 1), (UInt64(count), 2), (UInt64(extra), 4),
    ])
    let all = fixed + [UInt8](repeating: 0xee, count: extra) + Array(name.utf8)
    return all + [UInt8](repeating: 0, count: (8 - all.count % 8) % 8)
  }

  private func directory(
    _ raw: [UInt8], count: UInt64, judge: (BitmapEntry) throws(FormatError) -> Void = { _ in }
  ) throws(FormatError) -> BitmapDirectory {
    let location = try BitmapsExtension(
      parsing: bytes([(count, 4), (0, 4), (UInt64(raw.count), 8), (0x50000, 8)]).span)
    return try BitmapDirectory(parsing: raw.span, location, judge: judge)
  }

  @Test func theDirectoryIsReadEntryByEntry() throws {
    let raw = item("a") + item("second", extra: 5) + item("x\0y")
    let directory = try directory(raw, count: 3)
    let found = directory.items
    #expect(found.map(\.name) == ["a", "second", "x"])
    #expect(found.map(\.position) == [0, 32, 72])
    #expect(found.map(\.entry.extraLength) == [0, 5, 0])
    #expect(directory.flags(of: found[1]) == HostOffset(0x50000 + 32 + 12))
    var changed = raw
    var span = changed.mutableSpan
    found[1].entry.flags.union(.inUse).write(into: &span, at: 32 + 12)
    let expected = Array(raw[..<44]) + [0, 0, 0, 3] + Array(raw[48...])
    #expect(changed == expected)
  }

  @Test func aDirectoryThatIsNotFilledIsRefused() throws {
    let raw = item("a") + item("b")
    #expect(throws: FormatError.self) { try directory(raw, count: 1) }
    #expect(throws: FormatError.self) { try directory(raw, count: 3) }
    for cut in 1..<raw.count {
      #expect(throws: FormatError.self) { try directory(Array(raw[..<cut]), count: 2) }
    }
    let long = item("a", nameLength: 9)
    #expect(throws: FormatError.self) { try directory(long, count: 1) }
    #expect(throws: FormatError.notQCOW2(magic: 1)) {
      try directory(raw + [1], count: 2) { _ throws(FormatError) in throw .notQCOW2(magic: 1) }
    }
    let location = try BitmapsExtension(
      parsing: bytes([(1, 4), (0, 4), (32, 8), (0x50000, 8)]).span)
    try location.requireInside(fileLength: 0x50020)
    #expect(throws: FormatError.self) { try location.requireInside(fileLength: 0x5001f) }
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
