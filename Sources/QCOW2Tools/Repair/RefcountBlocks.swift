import BlockCore
import QCOW2Format

/// How the refcounts of an image differ from what they must be.
struct RefcountDifferences {
  /// Refcounts that are too low, those without a block included.
  var low: UInt64 = 0
  var high: UInt64 = 0
  /// Refcounts that change only because the repair moves something.
  var own: UInt64 = 0
  /// Of clusters beyond the end of the file, where no check looks, and nothing refers to.
  var beyondEnd: UInt64 = 0
  /// Too low, of clusters beyond the end of the file to which something refers: they would be handed out.
  var lost: UInt64 = 0
  /// Blocks that are missing, or cannot be read, and for which there are references.
  var missing: UInt64 = 0
}

/// The refcount blocks of an image, as they are and as they must be.
///
/// Visits blocks one by one; memory for one block.
struct RefcountBlocks {
  private let file: any WritableImageBytes
  private let scan: RefcountScan
  private let geometry: ClusterGeometry
  private var fileEnd: HostCluster { scan.fileEnd }

  init(_ file: any WritableImageBytes, _ scan: RefcountScan) {
    self.file = file
    self.scan = scan
    geometry = scan.geometry
  }

  /// Compares all; changes nothing.
  func differences() throws(ToolError) -> RefcountDifferences {
    var found = RefcountDifferences()
    try forEachBlock { range, _, block throws(ToolError) in
      for (index, cluster) in range.enumerated() {
        let stored = get(block, index)
        let needed = scan.references(cluster)
        if scan.isLost(cluster) {
          if stored < needed { found.lost += 1 }
        } else if stored != needed && scan.isOwn(cluster) {
          found.own += 1
        } else if stored < needed {
          found.low += 1
        } else if stored > needed {
          if cluster < fileEnd { found.high += 1 } else { found.beyondEnd += 1 }
        }
      }
    }
    countMissing(&found)
    return found
  }

  /// Raises the refcounts that are too low, those of what is lost behind the end of the file, too.
  ///
  /// - Returns: how many, without those beyond the end of the file.
  func raise() throws(ToolError) -> UInt64 {
    try change { _, stored, needed in max(stored, needed) }
  }

  /// Lowers the refcounts that are too high.
  ///
  /// - Returns: how many, without those beyond the end of the file.
  func lower() throws(ToolError) -> UInt64 {
    try change { [scan] cluster, stored, needed in
      scan.isLost(cluster) ? stored : min(stored, needed)
    }
  }

  private func change(
    _ value: (_ cluster: HostCluster, _ stored: UInt64, _ needed: UInt64) -> UInt64
  ) throws(ToolError) -> UInt64 {
    var count: UInt64 = 0
    try forEachBlock { range, offset, block throws(ToolError) in
      var changed: Range<Int>?
      for (index, cluster) in range.enumerated() {
        let stored = get(block, index)
        let new = value(cluster, stored, scan.references(cluster))
        guard new != stored else { continue }
        block.setRefcount(index, order: geometry.refcountOrder, to: new)
        changed = (changed?.lowerBound ?? index)..<(index + 1)
        if cluster < fileEnd && !scan.isOwn(cluster) { count += 1 }
      }
      if let changed { try write(block, entries: changed, at: offset) }
    }
    return count
  }

  /// Writes the sectors that hold some entries of a block.
  private func write(
    _ block: IOBuffer, entries: Range<Int>, at offset: HostOffset
  ) throws(ToolError) {
    func byte(_ entry: Int) -> Int { (entry << geometry.refcountOrder) >> 3 }
    let first = byte(entries.lowerBound) & ~511
    let end = (byte(entries.upperBound - 1) | 511) + 1
    let bytes = unsafe UnsafeRawBufferPointer(start: block.base + first, count: end - first)
    try unsafe file.write(bytes, at: offset + UInt64(first))
    withExtendedLifetime(block) {}
  }

  private func get(_ block: IOBuffer, _ index: Int) -> UInt64 {
    block.refcount(index, order: geometry.refcountOrder)
  }

  /// Calls `body` with the clusters that a block describes, where it lies, and its bytes.
  private func forEachBlock(
    _ body: (Range<HostCluster>, HostOffset, IOBuffer) throws(ToolError) -> Void
  ) throws(ToolError) {
    let block = IOBuffer(count: Int(geometry.clusterSize))
    for index in scan.check.refcounts.table.indices {
      guard let offset = readable(UInt64(index)) else { continue }
      try file.read(into: block, count: block.count, at: offset)
      try body(geometry.clusters(ofRefcountBlock: UInt64(index)), offset, block)
    }
  }

  /// Where a block lies, if it is a whole one inside the file.
  private func readable(_ index: UInt64) -> HostOffset? {
    guard case .at(let offset) = scan.check.refcounts.block(index),
      offset.bytes < scan.check.head.fileLength
    else { return nil }
    return offset
  }

  private func countMissing(_ found: inout RefcountDifferences) {
    var position = HostCluster(0)
    var last: UInt64?
    while let cluster = scan.check.references.nextReferenced(from: position) {
      let index = geometry.refcountBlock(of: cluster)
      position = cluster + 1
      if readable(index) != nil {
        position = geometry.clusters(ofRefcountBlock: index).upperBound
        continue
      }
      found.low += 1
      if last != index { found.missing += 1 }
      last = index
    }
    for cluster in scan.newSnapshotTable
    where readable(geometry.refcountBlock(of: cluster)) == nil {
      found.missing += 1
    }
  }
}
