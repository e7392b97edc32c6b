import BlockCore
import QCOW2Format

/// A small valid image with places for the fuzzer's bytes.
///
/// One L2 table, all refcounts 1; clusters of 512 bytes, or of 16 KiB with extended entries.
struct ImageTemplate {
  struct Features {
    var isExtended = false
    var isBacked = false
    var hasDataFile = false
    var isRaw = false
    var usesZstd = false
    var hasLazyRefcounts = false
    var cryptMethod: UInt32 = 0
  }

  /// The cluster of the L2 table.
  static let l2 = 4
  /// The first of the clusters that nothing refers to.
  static let free = 5
  private static let clusters = 40
  /// Behind the header, where an extension can be.
  private static let extensions = 112

  private(set) var bytes: [UInt8]
  private let clusterBits: Int

  init(_ features: Features) {
    clusterBits = features.isExtended ? 14 : 9
    bytes = [UInt8](repeating: 0, count: Self.clusters << clusterBits)
    setHeader(features)
    set64(UInt64(2) << UInt64(clusterBits), at: 1 << clusterBits)
    for cluster in 0..<Self.clusters { bytes[2 << clusterBits | cluster * 2 + 1] = 1 }
    set64(1 << 63 | UInt64(Self.l2) << UInt64(clusterBits), at: 3 << clusterBits)
  }

  private mutating func setHeader(_ features: Features) {
    var incompatible: IncompatibleFeatures = []
    if features.isExtended { incompatible.insert(.extendedL2) }
    if features.hasDataFile { incompatible.insert(.externalDataFile) }
    if features.usesZstd { incompatible.insert(.compressionType) }
    set32(Header.magic, at: 0)
    set32(3, at: 4)
    if features.isBacked {
      set64(480, at: 8)
      set32(4, at: 16)
      bytes.replaceSubrange(480..<484, with: Array("base".utf8))
    }
    set32(UInt32(clusterBits), at: 20)
    set64(1 << UInt64(2 * clusterBits - (features.isExtended ? 4 : 3)), at: 24)
    set32(features.cryptMethod, at: 32)
    set32(1, at: 36)
    set64(UInt64(3) << UInt64(clusterBits), at: 40)
    set64(UInt64(1) << UInt64(clusterBits), at: 48)
    set32(1, at: 56)
    set64(incompatible.rawValue, at: 72)
    set64(features.hasLazyRefcounts ? 1 : 0, at: 80)
    set64(features.isRaw ? 2 : 0, at: 88)
    set32(4, at: 96)
    set32(UInt32(Self.extensions), at: 100)
    bytes[104] = features.usesZstd ? 1 : 0
  }

  mutating func setSnapshots(count: UInt32, version: UInt32) {
    set32(version, at: 4)
    set32(count, at: 60)
    set64(UInt64(Self.free) << UInt64(clusterBits), at: 64)
    // Without the fields of version 3 the extensions begin at 72.
    if version == 2 { bytes.replaceSubrange(72..<112, with: repeatElement(0, count: 40)) }
  }

  mutating func setBitmaps(count: UInt32, length: UInt64) {
    set64(1, at: 88)
    set32(HeaderExtension.Kind.bitmaps.rawValue, at: Self.extensions)
    set32(UInt32(BitmapsExtension.length), at: Self.extensions + 4)
    set32(count, at: Self.extensions + 8)
    set64(length, at: Self.extensions + 16)
    set64(UInt64(Self.free) << UInt64(clusterBits), at: Self.extensions + 24)
  }

  /// Puts bytes at the start of a cluster, as many as there is room for.
  mutating func put(_ content: [UInt8], atCluster cluster: Int) {
    let start = cluster << clusterBits
    let count = min(content.count, bytes.count - start)
    bytes.replaceSubrange(start..<(start + count), with: content[..<count])
  }

  private mutating func set64(_ value: UInt64, at offset: Int) {
    bytes.withUnsafeMutableBytes { bytes in
      if let base = bytes.baseAddress { base.storeBE64(value, offset) }
    }
  }

  private mutating func set32(_ value: UInt32, at offset: Int) {
    bytes.withUnsafeMutableBytes { bytes in
      if let base = bytes.baseAddress { base.storeBE32(value, offset) }
    }
  }
}
