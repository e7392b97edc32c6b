public import BlockCore

extension BitmapsExtension {
  /// The extension that points at a directory.
  ///
  /// - Parameters:
  ///   - count: The entries of the directory, 1 to ``mostBitmaps``.
  ///   - directory: Where it lies; aligned to a cluster.
  ///   - directoryLength: Its bytes, without what is left of its last cluster.
  public init(count: UInt32, directory: HostOffset, directoryLength: UInt64) {
    bitmapCount = count
    reserved = 0
    self.directoryLength = directoryLength
    self.directory = directory
  }

  /// The data of the extension.
  public var encoded: [UInt8] {
    bigEndianBytes(bitmapCount) + bigEndianBytes(reserved) + bigEndianBytes(directoryLength)
      + bigEndianBytes(directory.bytes)
  }
}

extension BitmapEntry {
  /// An entry of a bitmap without extra data.
  ///
  /// - Parameters:
  ///   - table: Where its table lies; aligned to a cluster.
  ///   - tableSize: The entries of the table: see ``tableSize(for:granularityBits:_:)``.
  ///   - flags: Known flags.
  ///   - granularityBits: log2 of the guest bytes that a bit stands for, in ``granularityBitsRange``.
  ///   - nameLength: The bytes of the name, 1 to ``mostNameLength``.
  public init(
    table: HostOffset, tableSize: UInt32, flags: Flags, granularityBits: UInt8, nameLength: UInt16
  ) {
    self.init(
      table: table, tableSize: tableSize, flags: flags, type: 1, granularityBits: granularityBits,
      nameLength: nameLength, extraLength: 0)
  }

  /// The entries that the table of a bitmap needs: its bits, in whole 64-bit words, in whole clusters.
  public static func tableSize(
    for diskSize: UInt64, granularityBits: UInt8, _ geometry: ClusterGeometry
  ) -> UInt64 {
    let granularity: UInt64 = 1 << UInt64(granularityBits)
    let bits = diskSize / granularity + (diskSize % granularity == 0 ? 0 : 1)
    return geometry.clusters(covering: (bits / 64 + (bits % 64 == 0 ? 0 : 1)) * 8)
  }
}

/// One bitmap of a directory with all that its entry holds, as it is read and written anew.
public struct BitmapRecord: Equatable, Sendable {
  public var entry: BitmapEntry
  /// Of a bitmap that another program made; kept as it is.
  public let extraData: [UInt8]
  /// The name's bytes, which need not be UTF-8.
  public let nameBytes: [UInt8]

  /// A bitmap without extra data; `entry` says how long the name is.
  public init(_ entry: BitmapEntry, name: String) {
    self.entry = entry
    extraData = []
    nameBytes = Array(name.utf8)
  }

  /// The entry `item` of a directory, whose bytes are given.
  public init(_ item: BitmapDirectory.Item, in bytes: Span<UInt8>) {
    entry = item.entry
    let name = Int(item.position + item.entry.namePosition)
    extraData = bytes.copy((name - Int(item.entry.extraLength))..<name)
    nameBytes = bytes.copy(name..<(name + Int(item.entry.nameLength)))
  }

  public var name: String { String(decoding: nameBytes, as: UTF8.self) }

  /// Another table and other flags, all else as it is.
  public func with(table: HostOffset, flags: BitmapEntry.Flags) -> BitmapRecord {
    var record = self
    record.entry = BitmapEntry(entry, table: table, flags: flags)
    return record
  }

  /// The entry as it stands in a directory, with its padding.
  public var encoded: [UInt8] {
    var bytes = bigEndianBytes(entry.table.bytes) + bigEndianBytes(entry.tableSize)
    bytes += bigEndianBytes(entry.flags.rawValue) + [entry.type, entry.granularityBits]
    bytes += bigEndianBytes(entry.nameLength) + bigEndianBytes(entry.extraLength)
    bytes += extraData + nameBytes
    return bytes + [UInt8](repeating: 0, count: Int(entry.length) - bytes.count)
  }
}
