public import BlockCore

/// The bitmaps extension of the header.
///
/// Source: qcow2 specification, "Bitmaps extension".
public struct BitmapsExtension: Equatable, Sendable {
  public static let length = 24
  /// QEMU's limits.
  public static let mostBitmaps: UInt32 = 65535
  public static let mostDirectoryLength: UInt64 = 64 << 20

  public let bitmapCount: UInt32
  public let reserved: UInt32
  /// In bytes.
  public let directoryLength: UInt64
  public let directory: HostOffset

  public init(parsing bytes: Span<UInt8>) throws(FormatError) {
    guard bytes.count == Self.length else {
      throw .badField(
        name: "length of the bitmaps extension", found: UInt64(bytes.count),
        allowed: "\(Self.length)")
    }
    bitmapCount = bytes.be32(0)
    reserved = bytes.be32(4)
    directoryLength = bytes.be64(8)
    directory = HostOffset(bytes.be64(16))
  }

  /// The data of the extension, with the directory somewhere else.
  public func encoded(directory: HostOffset) -> [UInt8] {
    bigEndianBytes(bitmapCount) + bigEndianBytes(reserved) + bigEndianBytes(directoryLength)
      + bigEndianBytes(directory.bytes)
  }

  /// Checks the fields against the specification and QEMU's limits.
  public func validate(_ geometry: ClusterGeometry) throws(FormatError) {
    guard (1...Self.mostBitmaps).contains(bitmapCount) else {
      throw .badField(
        name: "nb_bitmaps", found: UInt64(bitmapCount), allowed: "1 to \(Self.mostBitmaps)")
    }
    guard reserved == 0 else {
      throw .badField(
        name: "reserved field of the bitmaps extension", found: UInt64(reserved), allowed: "0")
    }
    guard (1...Self.mostDirectoryLength).contains(directoryLength) else {
      throw .badField(
        name: "bitmap_directory_size", found: directoryLength,
        allowed: "1 to \(Self.mostDirectoryLength)")
    }
    if let problem = FormatError.place(of: "bitmap_directory_offset", directory, geometry) {
      throw problem
    }
  }

  /// Throws if the file ends before the directory does; call after ``validate(_:)``.
  public func requireInside(fileLength: UInt64) throws(FormatError) {
    let end = directory.bytes + directoryLength
    guard end <= fileLength else {
      throw .truncated(structure: "bitmap directory", needed: end, available: fileLength)
    }
  }
}

/// The bitmap directory as found: entries that lie inside it.
///
/// Source: qcow2 specification, "Bitmap directory".
public struct BitmapDirectory: Equatable, Sendable {
  /// A bitmap with its name.
  public struct Item: Equatable, Sendable {
    public let entry: BitmapEntry
    public let name: String
    /// Where the entry starts, counted from the start of the directory.
    public let position: UInt64
  }

  public let location: BitmapsExtension
  /// In the order of the directory.
  public let items: [Item]

  /// Where the flags of an entry stand on the host file.
  public func flags(of item: Item) -> HostOffset {
    location.directory + (item.position + UInt64(BitmapEntry.Field.flags))
  }

  /// - Parameters:
  ///   - bytes: The whole directory.
  ///   - location: Where it lies, checked.
  ///   - judge: Called with each entry before the next one is looked at.
  /// - Throws: If the entries do not fill it, or are not as many as the extension says, and what
  ///   `judge` throws.
  public init(
    parsing bytes: Span<UInt8>, _ location: BitmapsExtension,
    judge: (BitmapEntry) throws(FormatError) -> Void = { _ in }
  ) throws(FormatError) {
    var items: [Item] = []
    var position = 0
    while position < bytes.count {
      let rest = bytes.extracting(position..<bytes.count)
      guard rest.count >= BitmapEntry.fixedLength else { throw Self.tooLong(UInt64(rest.count)) }
      let entry = BitmapEntry(parsing: rest)
      guard entry.length <= UInt64(rest.count) else { throw Self.tooLong(entry.length) }
      try judge(entry)
      let name = Int(entry.namePosition)
      items.append(
        Item(
          entry: entry, name: rest.text(name..<(name + Int(entry.nameLength))),
          position: UInt64(position)))
      position += Int(entry.length)
    }
    guard items.count == Int(location.bitmapCount) else {
      throw .badField(
        name: "nb_bitmaps", found: UInt64(location.bitmapCount),
        allowed: "\(items.count), the entries of the directory")
    }
    self.location = location
    self.items = items
  }

  private static func tooLong(_ found: UInt64) -> FormatError {
    .badField(
      name: "length of a bitmap directory entry", found: found,
      allowed: "what is left of the directory")
  }
}

/// One entry of the bitmap directory.
///
/// Source: qcow2 specification, "Bitmap directory".
public struct BitmapEntry: Equatable, Sendable {
  public static let fixedLength = 24
  /// QEMU's limits.
  public static let mostTableEntries: UInt32 = 0x800_0000
  public static let mostBytes: UInt64 = 0x2000_0000
  public static let mostNameLength: UInt16 = 1023
  public static let granularityBitsRange: ClosedRange<UInt8> = 9...31

  /// Bits of the flags.
  public struct Flags: OptionSet, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    public static let inUse = Self(rawValue: 1 << 0)
    public static let auto = Self(rawValue: 1 << 1)
    public static let extraDataCompatible = Self(rawValue: 1 << 2)
    public static let known: Self = [.inUse, .auto, .extraDataCompatible]

    /// Makes the change in the bytes of an entry.
    ///
    /// - Parameters:
    ///   - bytes: What holds the flags, at `position`.
    ///   - position: Where they stand.
    public func write(into bytes: inout MutableSpan<UInt8>, at position: Int) {
      bytes.storeBE(rawValue, position)
    }
  }

  /// Byte positions of the fields.
  enum Field {
    static let table = 0
    static let tableSize = 8
    static let flags = 12
    static let type = 16
    static let granularityBits = 17
    static let nameLength = 18
    static let extraLength = 20
  }

  public let table: HostOffset
  /// In entries.
  public let tableSize: UInt32
  public let flags: Flags
  public let type: UInt8
  public let granularityBits: UInt8
  public let nameLength: UInt16
  public let extraLength: UInt32

  init(
    table: HostOffset, tableSize: UInt32, flags: Flags, type: UInt8, granularityBits: UInt8,
    nameLength: UInt16, extraLength: UInt32
  ) {
    self.table = table
    self.tableSize = tableSize
    self.flags = flags
    self.type = type
    self.granularityBits = granularityBits
    self.nameLength = nameLength
    self.extraLength = extraLength
  }

  /// Reads the fixed part, ``fixedLength`` bytes.
  public init(parsing bytes: Span<UInt8>) {
    table = HostOffset(bytes.be64(Field.table))
    tableSize = bytes.be32(Field.tableSize)
    flags = Flags(rawValue: bytes.be32(Field.flags))
    type = bytes[Field.type]
    granularityBits = bytes[Field.granularityBits]
    nameLength = bytes.be16(Field.nameLength)
    extraLength = bytes.be32(Field.extraLength)
  }

  /// Makes the entry in the bytes of a directory lead to another table.
  ///
  /// - Parameters:
  ///   - bytes: The directory, with the entry at `position`.
  ///   - position: Where the entry starts.
  ///   - table: Where the new table starts.
  ///   - size: Its entries.
  public static func setTable(
    in bytes: inout MutableSpan<UInt8>, at position: Int, _ table: HostOffset, size: UInt32
  ) {
    bytes.storeBE(table.bytes, position + Field.table)
    bytes.storeBE(size, position + Field.tableSize)
  }

  /// The same entry with another table and other flags.
  init(_ other: BitmapEntry, table: HostOffset, flags: Flags) {
    self = BitmapEntry(
      table: table, tableSize: other.tableSize, flags: flags, type: other.type,
      granularityBits: other.granularityBits, nameLength: other.nameLength,
      extraLength: other.extraLength)
  }

  /// The bytes of the entry with its padding; below 2^33.
  public var length: UInt64 {
    (UInt64(Self.fixedLength) + UInt64(extraLength) + UInt64(nameLength) + 7) & ~7
  }
  /// Where the name starts, counted from the start of the entry.
  public var namePosition: UInt64 { UInt64(Self.fixedLength) + UInt64(extraLength) }

  /// Checks the fields against the specification and QEMU's limits.
  ///
  /// - Parameters:
  ///   - geometry: The image's.
  ///   - diskSize: The virtual size, which a bitmap that is not in use must fit.
  /// - Throws: ``FormatError`` at the first field that is wrong.
  public func validate(
    _ geometry: ClusterGeometry, diskSize: UInt64
  ) throws(FormatError) {
    let bytes = UInt64(tableSize) << UInt64(geometry.clusterBits)
    guard (1...Self.mostTableEntries).contains(tableSize), bytes <= Self.mostBytes else {
      throw bad(
        "bitmap_table_size", UInt64(tableSize),
        "1 to \(Self.mostBytes >> UInt64(geometry.clusterBits))")
    }
    if let problem = FormatError.place(of: "bitmap_table_offset", table, geometry) { throw problem }
    guard flags.isSubset(of: .known) else {
      throw bad("flags of a bitmap", UInt64(flags.rawValue), "bits 0 to 2")
    }
    guard type == 1 else { throw bad("type of a bitmap", UInt64(type), "1") }
    guard Self.granularityBitsRange.contains(granularityBits) else {
      throw bad("granularity_bits", UInt64(granularityBits), "9 to 31")
    }
    guard (1...Self.mostNameLength).contains(nameLength) else {
      throw bad("name_size of a bitmap", UInt64(nameLength), "1 to \(Self.mostNameLength)")
    }
    guard flags.contains(.inUse) || UInt64(tableSize) == entriesNeeded(geometry, diskSize) else {
      throw bad(
        "bitmap_table_size", UInt64(tableSize),
        "\(entriesNeeded(geometry, diskSize)) for the virtual size")
    }
  }

  /// The bits for a disk; valid after ``validate(_:diskSize:)``.
  public func bitCount(diskSize: UInt64) -> UInt64 {
    let granularity: UInt64 = 1 << UInt64(granularityBits)
    return diskSize / granularity + (diskSize % granularity == 0 ? 0 : 1)
  }

  /// The number of table entries for a disk.
  public func entriesNeeded(_ geometry: ClusterGeometry, _ diskSize: UInt64) -> UInt64 {
    Self.tableSize(for: diskSize, granularityBits: granularityBits, geometry)
  }

  private func bad(_ name: FieldName, _ found: UInt64, _ allowed: String) -> FormatError {
    .badField(name: name, found: found, allowed: allowed)
  }
}

/// An entry of a bitmap table.
///
/// Source: qcow2 specification, "Bitmap table".
public struct BitmapTableEntry: Equatable, Sendable {
  public let raw: UInt64
  @inlinable public init(raw: UInt64) { self.raw = raw }
  /// The cluster with the bits; nil if all of them are the same.
  @inlinable public var cluster: HostOffset? {
    raw & EntryBits.offset == 0 ? nil : HostOffset(raw & EntryBits.offset)
  }
  /// Without a cluster: the bits are ones, not zeros.
  @inlinable public var isAllOnes: Bool { raw & 1 == 1 }
}
