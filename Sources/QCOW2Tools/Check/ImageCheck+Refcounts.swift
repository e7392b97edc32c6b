import BlockCore
import QCOW2Format

/// The refcount structures, and their comparison with the references.
extension ImageCheck {
  func checkRefcountTable() {
    let length = UInt64(head.header.refcountTableClusters) << UInt64(geometry.clusterBits)
    add(.refcountTable, at: HostOffset(head.header.refcountTableOffset), length: length)
  }

  /// Judges the entries of the refcount table; after everything else has been counted.
  func checkRefcountBlocks() {
    for (number, entry) in refcounts.table.enumerated() where entry.raw != 0 {
      let index = UInt64(number)
      let place = EntryPlace.refcountTable(index: index)
      let faults = entry.faults(geometry, fileLength: head.fileLength)
      guard !faults.contains(.reservedBits), let block = entry.block else {
        found(.reservedBits(entry: place, raw: entry.raw))
        continue
      }
      guard !faults.contains(.unaligned) else {
        found(.unaligned(use: .refcountBlock, offset: block, entry: place))
        continue
      }
      guard !faults.contains(.beyondEnd) else {
        found(
          .beyondEnd(use: .refcountBlock, offset: block, length: geometry.clusterSize))
        continue
      }
      add(.refcountBlock, at: block, length: geometry.clusterSize)
      let count = references.count(of: hostCluster(block))
      if count != 1 { found(.refcountBlockShared(index: index, references: count)) }
    }
  }

  /// Compares the refcounts with the references, on the threads of the check.
  func compareRefcounts() throws(ToolError) {
    result.imageEndOffset = geometry.start(of: try RefcountComparison(self).run() + 1).bytes
  }
}
