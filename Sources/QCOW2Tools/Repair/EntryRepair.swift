import BlockCore
import QCOW2Format

/// What a repair makes of single entries of L1 and L2 tables.
///
/// Only entries are mended that read the same afterwards: reserved bits are cleared, and a place
/// that is given to a cluster of zeros is taken away where no cluster can lie. Everything else would
/// be a guess, and stays. Bytes that look like no entry at all are left alone, since a table with
/// such bytes may be no table.
struct EntryRepair {
  private static let copied: UInt64 = 1 << 63
  private static let zero: UInt64 = 1
  private static let highBits: UInt64 = 0xff << 56
  private static let offset: UInt64 = 0x00ff_ffff_ffff_fe00

  private let rules: EntryRules
  private let fileLength: UInt64

  init(_ head: ImageHead) {
    rules = EntryRules(head.header)
    fileLength = head.fileLength
  }

  /// The mended L1 entry; nil if there is nothing to mend.
  func l1(_ entry: L1Entry) -> L1Entry? {
    guard entry.raw != 0 else { return nil }
    guard let table = entry.l2Table else {
      let isOnlyFlags = entry.raw & ~Self.highBits == 0
      return isOnlyFlags ? L1Entry(raw: 0) : nil
    }
    guard entry.hasReservedBits, isCluster(table) else { return nil }
    return L1Entry(l2Table: table, copied: entry.isCopied)
  }

  /// The mended first half of an L2 entry; nil if there is nothing to mend.
  func l2(_ entry: L2Entry, bitmap: SubclusterBitmap) -> L2Entry? {
    guard entry.kind(hasZeroFlag: rules.hasZeroFlag) != .compressed else { return nil }
    let allowed = Self.offset | Self.copied | (rules.hasZeroFlag ? Self.zero : 0)
    let isZero =
      rules.isExtended ? bitmap.allocated == 0 : entry.kind(hasZeroFlag: rules.hasZeroFlag) == .zero
    guard entry.raw & ~allowed == 0 else { return withoutReservedBits(entry, allowed) }
    guard isZero, let cluster = entry.hostCluster, !isPlace(cluster) else { return nil }
    return rules.isExtended ? .unallocated : .zero
  }

  private func withoutReservedBits(_ entry: L2Entry, _ allowed: UInt64) -> L2Entry? {
    // In version 2, bit 0 may be the zero flag of an image whose version was changed.
    let isVersion2 = !rules.hasZeroFlag && !rules.isExtended
    if isVersion2 && entry.raw & Self.zero != 0 { return nil }
    if let cluster = entry.hostCluster, !isPlace(cluster) { return nil }
    return L2Entry(raw: entry.raw & allowed)
  }

  /// Whether a guest cluster can lie there.
  private func isPlace(_ cluster: HostOffset) -> Bool {
    rules.hasDataFile ? cluster.bytes & rules.geometry.clusterMask == 0 : isCluster(cluster)
  }

  private func isCluster(_ offset: HostOffset) -> Bool {
    offset.bytes & rules.geometry.clusterMask == 0 && offset.bytes < fileLength
  }
}
