import QCOW2Format

/// A small, correct image, laid out by hand, whose bytes tests then spoil.
///
/// Clusters: 0 header, 1 refcount table, 2 refcount block, 3 L1 table, 4 and 5 L2 tables,
/// 6 to 13 data, 14 unused. Data cluster d holds the byte d + 1 and is mapped by entry d % 4 of
/// L2 table d / 4, for d in 0..<8.
struct HandmadeImage {
  static let refcountTable = 1
  static let refcountBlock = 2
  static let l1Table = 3
  static let l2Tables = [4, 5]
  static let firstData = 6
  static let dataClusters = 8
  static let clusters = 15

  let clusterBits: Int
  let version: Int
  var bytes: [UInt8]

  var clusterSize: Int { 1 << clusterBits }
  /// Guest bytes that one L2 table maps.
  var bytesPerTable: UInt64 { UInt64(clusterSize / 8) << UInt64(clusterBits) }
  var diskSize: UInt64 { bytesPerTable * 2 }

  init(clusterBits: Int = 9, version: Int = 3) {
    self.clusterBits = clusterBits
    self.version = version
    bytes = [UInt8](repeating: 0, count: Self.clusters << clusterBits)
    put32(Header.magic, at: 0)
    put32(UInt32(version), at: 4)
    put32(UInt32(clusterBits), at: 20)
    put64(diskSize, at: 24)
    put32(2, at: 36)
    put64(offset(Self.l1Table), at: 40)
    put64(offset(Self.refcountTable), at: 48)
    put32(1, at: 56)
    if version == 3 {
      put32(4, at: 96)
      put32(104, at: 100)
    }
    put64(offset(Self.refcountBlock), at: start(Self.refcountTable))
    for cluster in 0..<(Self.clusters - 1) { setRefcount(1, cluster) }
    for (index, table) in Self.l2Tables.enumerated() {
      put64(offset(table) | Self.copied, at: start(Self.l1Table) + index * 8)
    }
    for data in 0..<Self.dataClusters {
      put64(offset(Self.firstData + data) | Self.copied, at: positionOfEntry(data))
      let first = start(Self.firstData + data)
      for position in first..<(first + clusterSize) { bytes[position] = UInt8(data + 1) }
    }
  }

  static let copied: UInt64 = 1 << 63

  /// The first byte of a host cluster, as a position in ``bytes``.
  func start(_ cluster: Int) -> Int { cluster << clusterBits }
  /// The first byte of a host cluster, as an entry has it.
  func offset(_ cluster: Int) -> UInt64 { UInt64(cluster) << UInt64(clusterBits) }
  /// Where the L2 entry of a data cluster lies.
  func positionOfEntry(_ data: Int) -> Int { start(Self.l2Tables[data / 4]) + data % 4 * 8 }

  mutating func put32(_ value: UInt32, at position: Int) {
    for byte in 0..<4 {
      bytes[position + byte] = UInt8(truncatingIfNeeded: value >> UInt32(24 - 8 * byte))
    }
  }

  mutating func put64(_ value: UInt64, at position: Int) {
    for byte in 0..<8 {
      bytes[position + byte] = UInt8(truncatingIfNeeded: value >> UInt64(56 - 8 * byte))
    }
  }

  func get64(_ position: Int) -> UInt64 {
    bytes[position..<(position + 8)].reduce(0) { $0 << 8 | UInt64($1) }
  }

  /// Sets the refcount of a host cluster; refcounts have 16 bits.
  mutating func setRefcount(_ value: UInt16, _ cluster: Int) {
    let position = start(Self.refcountBlock) + cluster * 2
    bytes[position] = UInt8(value >> 8)
    bytes[position + 1] = UInt8(value & 0xff)
  }
}
