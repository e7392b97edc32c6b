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
    return SnapshotEntry(parsing: (fixed + extra).span)
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

  @Test func noInstructionCountIsAllOnes() {
    let raw = bytes([(0, 36 - 8), (0, 8), (24, 4), (1, 8), (2, 8), (UInt64.max, 8)])
    let entry = SnapshotEntry(parsing: raw.span)
    #expect((entry.extraLength, entry.vmStateSize, entry.diskSize) == (24, 1, 2))
    #expect(entry.instructionCount == nil)
  }

  /// The bytes of an entry, without padding.
  private func raw(extra: [UInt8], id: String = "1", name: String = "name") -> [UInt8] {
    bytes([
      (0x30000, 8), (7, 4), (UInt64(id.utf8.count), 2), (UInt64(name.utf8.count), 2), (5, 4),
      (6, 4), (7, 8), (99, 4), (UInt64(extra.count), 4),
    ]) + extra + Array(id.utf8) + Array(name.utf8)
  }

  private func completed(_ raw: [UInt8]) -> [UInt8] {
    let entry = SnapshotEntry(parsing: (raw + [UInt8](repeating: 0, count: 24)).span)
    let texts = raw.span.extracting(last: entry.textLength)
    return entry.completed(
      start: raw.span.extracting(first: entry.keptLength), texts: texts, diskSize: 1 << 30)
  }

  @Test func whatAnEntryLacksIsFilledIn() {
    let (state, disk) = (bytes([(1 << 33, 8)]), bytes([(1 << 40, 8)]))
    let (old, size) = (bytes([(99, 8)]), bytes([(1 << 30, 8)]))
    let none = [UInt8](repeating: 0xff, count: 8)
    let count = bytes([(42, 8)])
    let more = [UInt8](1...100)
    #expect(completed(raw(extra: [])) == raw(extra: old + size + none))
    #expect(completed(raw(extra: state)) == raw(extra: state + size + none))
    #expect(completed(raw(extra: state + disk)) == raw(extra: state + disk + none))
    let whole = state + disk + count
    #expect(completed(raw(extra: whole)) == raw(extra: whole))
    #expect(completed(raw(extra: whole + more)) == raw(extra: whole + more))
    let long = [UInt8](repeating: 3, count: 2000)
    #expect(completed(raw(extra: whole + long)) == raw(extra: whole + long.prefix(1000)))
    #expect(completed(raw(extra: [], id: "", name: "")).count == 64)
  }

  @Test func anL1TableIsJudged() {
    let geometry = ClusterGeometry(clusterBits: 16, refcountOrder: 4)
    func entry(_ table: UInt64, _ size: UInt64) -> SnapshotEntry {
      SnapshotEntry(parsing: bytes([(table, 8), (size, 4), (0, 52)]).span)
    }
    #expect(entry(0x30000, 7).l1Length == 56)
    #expect(entry(0x30000, 7).l1Faults(geometry, fileLength: 0x30001).isEmpty)
    #expect(entry(0x30000, 7).l1Faults(geometry, fileLength: 0x30000) == .beyondEnd)
    #expect(entry(0x30200, 7).l1Faults(geometry) == .unaligned)
    #expect(!entry(0, 1 << 22).isL1TooLong && entry(0, 1 << 22 + 1).isL1TooLong)
    #expect(entry(0, 0).isIncomplete(version: 3) && !entry(0, 0).isIncomplete(version: 2))
  }
}

@Suite struct SnapshotTableReaderTests {
  private func raw(_ id: String, _ name: String, extra: Int) -> [UInt8] {
    let all =
      bytes([
        (0x30000, 8), (7, 4), (UInt64(id.utf8.count), 2), (UInt64(name.utf8.count), 2), (0, 20),
        (UInt64(extra), 4),
      ]) + [UInt8](repeating: 1, count: extra) + Array(id.utf8) + Array(name.utf8)
    return all + [UInt8](repeating: 0, count: (8 - all.count % 8) % 8)
  }

  /// Reads a table as the caller of a reader does: what lies behind it is zero.
  private func read(
    _ table: [UInt8], count: UInt32, mostExtraLength: UInt32 = SnapshotEntry.mostExtraLength
  ) throws(FormatError) -> SnapshotTableReader {
    let padded = table + [UInt8](repeating: 0, count: 1 << 17)
    var reader = SnapshotTableReader(count: count, mostExtraLength: mostExtraLength)
    while let wanted = reader.wanted {
      let first = Int(wanted.position)
      guard first + wanted.count <= padded.count else {
        throw .truncated(structure: "test", needed: wanted.position, available: 0)
      }
      try reader.take(padded.span.extracting(first..<(first + wanted.count)))
    }
    return reader
  }

  @Test func entriesFollowEachOther() throws {
    let table = raw("1", "first", extra: 0) + raw("2", "a\0b", extra: 16) + raw("", "", extra: 24)
    let reader = try read(table, count: 3)
    #expect(reader.snapshots.map(\.id) == ["1", "2", ""])
    #expect(reader.snapshots.map(\.name) == ["first", "a", ""])
    #expect(reader.length == UInt64(table.count))
    let first = try read(table, count: 1)
    #expect(first.length == 46 && first.snapshots[0].entry.paddedLength == 48)
    #expect(try read([], count: 0).snapshots.isEmpty)
  }

  @Test func tooMuchExtraDataIsRefusedOrTaken() throws {
    let table = raw("1", "name", extra: 1025)
    #expect(throws: FormatError.self) { try read(table, count: 1) }
    let reader = try read(table, count: 1, mostExtraLength: .max)
    #expect(reader.snapshots.map(\.name) == ["name"])
  }

  @Test func fewerBytesThanWantedAreRefused() {
    var reader = SnapshotTableReader(count: 1)
    let short = [UInt8](repeating: 0, count: 63)
    #expect(throws: FormatError.self) { try reader.take(short.span) }
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
