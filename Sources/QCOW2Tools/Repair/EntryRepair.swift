import BlockCore
import QCOW2Format

/// What a repair makes of single entries of L1 and L2 tables.
///
/// Only entries are mended that read the same afterwards: reserved bits are cleared, and a place
/// that is given to a cluster of zeros is taken away where no cluster can lie. Everything else would
/// be a guess, and stays. Bytes that look like no entry at all are left alone, since a table with
/// such bytes may be no table.
struct EntryRepair {
  private let rules: EntryRules
  private let fileLength: UInt64

  init(_ head: HeaderCluster) {
    rules = EntryRules(head.header)
    fileLength = head.fileLength
  }

  /// The mended L1 entry; nil if there is nothing to mend.
  func l1(_ entry: L1Entry) -> L1Entry? {
    guard entry.raw != 0 else { return nil }
    guard let table = entry.l2Table else {
      let isOnlyFlags = entry.raw & ~EntryBits.aboveOffset == 0
      return isOnlyFlags ? .unallocated : nil
    }
    guard entry.faults(rules.geometry, fileLength: fileLength) == .reservedBits else { return nil }
    return L1Entry(l2Table: table, copied: entry.isCopied)
  }

  /// The mended first half of an L2 entry; nil if there is nothing to mend.
  func l2(_ entry: L2Entry, bitmap: SubclusterBitmap) -> L2Entry? {
    let kind = entry.kind(hasZeroFlag: rules.hasZeroFlag)
    let faults = rules.faults(entry, fileLength: fileLength)
    if kind == .compressed || faults.isEmpty { return nil }
    if faults.contains(.reservedBits) {
      // In version 2, bit 0 may be the zero flag of an image whose version was changed.
      let isVersion2 = !rules.hasZeroFlag && !rules.isExtended
      let mayBeZero = isVersion2 && entry.raw & EntryBits.zero != 0
      return faults == .reservedBits && !mayBeZero
        ? L2Entry(raw: entry.raw & rules.descriptorBits) : nil
    }
    // It leads to where no cluster can lie.
    guard rules.isExtended ? bitmap.allocated == 0 : kind == .zero else { return nil }
    return rules.isExtended ? .unallocated : .zero
  }
}
