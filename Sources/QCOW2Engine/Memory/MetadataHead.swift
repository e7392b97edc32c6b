/// A line of the table of regions, as it lies in memory.
struct RegionRecord: BitwiseCopyable, Equatable {
  /// A ``MetadataKind``; 0 if the line is free, whatever else it says.
  var kind: UInt32 = 0
  /// In bytes.
  var elementSize: UInt32 = 0
  /// Where the region starts, in bytes from the head's start; a multiple of a page.
  var offset: UInt64 = 0
  /// In bytes.
  var length: UInt64 = 0
  /// Slots, slices, entries of a table, or workers.
  var count: UInt64 = 0
  /// Where a table starts in the host file; 0 for all else.
  var place: UInt64 = 0
  /// ``checksum`` of the line.
  var check: UInt64 = 0

  /// What ``check`` must be.
  var checksum: UInt64 {
    MetadataHead.checksum([UInt64(kind), UInt64(elementSize), offset, length, count, place])
  }
}

/// The first page of ``MetadataMemory``: says what it is and where its regions are.
///
/// Bytes are in the machine's order:
///
///     0   magic
///     8   version of the layout, 32 bits
///     12  lines of the table of regions, 32 bits
///     16  checksum of the layout: version, sizes and places of the fields of all records
///     64  the table: ``RegionRecord``s
///
/// A line is filled first and gets its kind last, in a store of its own; it is freed by a store of kind 0.
/// So whoever reads the table finds whole lines only, whenever the process died.
@safe
struct MetadataHead {
  static let size = 4096
  static let magic: UInt64 = 0x6d65_6d6b_6c62_7571  // the bytes "qublkmem"
  static let version: UInt32 = 1
  private static let tableOffset = 64
  static let capacity = (size - tableOffset) / MemoryLayout<RegionRecord>.stride

  private let base: UnsafeMutableRawPointer

  /// - Parameter base: ``size`` bytes that outlive the head.
  init(_ base: UnsafeMutableRawPointer) { unsafe self.base = unsafe base }

  /// Writes an empty table; the magic last.
  func initialize() {
    for number in 0..<Self.capacity { unsafe records[number] = RegionRecord() }
    unsafe base.storeBytes(of: Self.version, toByteOffset: 8, as: UInt32.self)
    unsafe base.storeBytes(of: UInt32(Self.capacity), toByteOffset: 12, as: UInt32.self)
    unsafe base.storeBytes(of: Self.layoutChecksum, toByteOffset: 16, as: UInt64.self)
    MetadataMemory.orderStores()
    unsafe base.storeBytes(of: Self.magic, toByteOffset: 0, as: UInt64.self)
  }

  private var records: UnsafeMutablePointer<RegionRecord> {
    unsafe (base + Self.tableOffset).assumingMemoryBound(to: RegionRecord.self)
  }

  subscript(number: Int) -> RegionRecord {
    assert(number >= 0 && number < Self.capacity)
    return unsafe records[number]
  }

  /// Fills a free line.
  func fill(_ number: Int, _ record: RegionRecord) {
    assert(self[number].kind == 0 && record.kind != 0)
    var filled = record
    filled.check = record.checksum
    filled.kind = 0
    unsafe records[number] = filled
    MetadataMemory.orderStores()
    unsafe records[number].kind = record.kind
  }

  /// Makes a line free.
  func free(_ number: Int) {
    assert(self[number].kind != 0)
    unsafe records[number].kind = 0
  }

  /// FNV-1a, word by word: finds lines that nobody wrote, and layouts of other builds.
  static func checksum(_ words: [UInt64]) -> UInt64 {
    words.reduce(0xcbf2_9ce4_8422_2325) { ($0 ^ $1) &* 0x0000_0100_0000_01b3 }
  }

  /// Differs between builds that lay out records differently, should the version be forgotten.
  static var layoutChecksum: UInt64 {
    checksum([
      UInt64(version), UInt64(MemoryLayout<RegionRecord>.stride), UInt64(tableOffset),
      UInt64(MemoryLayout<CacheSlot>.stride),
      UInt64(MemoryLayout<CacheSlot>.offset(of: \.key) ?? -1),
      UInt64(MemoryLayout<CacheSlot>.offset(of: \.isHeld) ?? -1),
      UInt64(MemoryLayout<CacheSlot>.offset(of: \.dirtyGeneration) ?? -1),
      UInt64(DiskTable.entriesPerSector), UInt64(ArenaRecords.stride), ArenaRecords.countBits,
    ])
  }
}
