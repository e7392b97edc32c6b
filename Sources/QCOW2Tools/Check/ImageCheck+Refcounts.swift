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

  /// Compares block by block, leaving out ranges without a block and without a reference.
  func compareRefcounts() throws(ToolError) {
    var highest: UInt64 = 0
    let clusters = geometry.clusters(covering: head.fileLength)
    // What starts in a last cluster that is cut short may end in the one after it.
    let end = references.count(of: clusters) > 0 ? clusters + 1 : clusters
    var cluster: UInt64 = 0
    var touched = references.nextTouched(from: 0) ?? UInt64.max
    while cluster < end {
      let index = geometry.refcountBlock(of: cluster)
      let next = min(end, geometry.clusters(ofRefcountBlock: index).upperBound)
      switch refcounts.block(index) {
      case .none:
        if touched < cluster { touched = references.nextTouched(from: cluster) ?? UInt64.max }
        if touched < next { compareMissing(cluster..<next, &highest) }
      case .unreadable: found(.refcountsUnreadable(block: index))
      case .at(let offset):
        let block = try refcounts.contents(index, at: offset)
        compare(cluster..<next, block, &highest)
      }
      cluster = next
    }
    result.imageEndOffset = (highest + 1) << UInt64(geometry.clusterBits)
  }

  private func compareMissing(_ clusters: Range<UInt64>, _ highest: inout UInt64) {
    var position = clusters.lowerBound
    while let cluster = references.nextTouched(from: position), cluster < clusters.upperBound {
      compare(cluster, refcount: 0, &highest)
      position = cluster + 1
    }
  }

  private func compare(_ clusters: Range<UInt64>, _ block: IOBuffer, _ highest: inout UInt64) {
    let geometry = geometry
    for cluster in clusters {
      let index = geometry.indexInRefcountBlock(of: cluster)
      let refcount = block.refcount(index, order: geometry.refcountOrder)
      compare(cluster, refcount: refcount, &highest)
    }
  }

  private func compare(_ cluster: UInt64, refcount: UInt64, _ highest: inout UInt64) {
    var count = references.count(of: cluster)
    if refcount == 0 && count == 0 { return }
    highest = max(highest, cluster)
    let offset = geometry.start(ofHostCluster: cluster)
    if count > geometry.maxRefcount {
      found(
        .tooManyReferences(cluster: offset, references: count, largest: geometry.maxRefcount))
      count = geometry.maxRefcount
    }
    guard refcount != count else { return }
    found(.refcount(cluster: offset, found: refcount, references: count))
  }
}
