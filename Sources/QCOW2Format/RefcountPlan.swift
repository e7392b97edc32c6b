public import BlockCore

/// Where a refcount table and refcount blocks go, so that they count themselves: the one place that
/// computes it for new images, for refcounts written anew and for a table that grows.
///
/// The table and the blocks lie side by side in clusters that nothing else uses. A block is known by
/// its number, the index of its entry in the table. Source: qcow2 specification, "Host cluster
/// management".
public struct RefcountPlan: Equatable, Sendable {
  /// The table would be longer than that of an image may be.
  public struct TableTooLong: Error, Equatable {
    /// What it would have.
    public let entries: UInt64

    public init(entries: UInt64) { self.entries = entries }
  }

  /// The clusters of the table.
  public let table: Range<HostCluster>
  /// The clusters of the blocks, in the order of their numbers.
  public let blocks: Range<HostCluster>
  /// The numbers of the blocks, ascending.
  public let numbers: [UInt64]
  public let geometry: ClusterGeometry

  /// The clusters of the table and of the blocks.
  public var clusters: Range<HostCluster> {
    min(table.lowerBound, blocks.lowerBound)..<max(table.upperBound, blocks.upperBound)
  }

  /// Plans for a new image: the table behind the header, then the blocks, then all the rest, without
  /// a hole.
  ///
  /// - Parameters:
  ///   - others: The clusters beside the table and the blocks, at least 1: the header is one of them.
  ///   - geometry: The image's.
  /// - Throws: ``TableTooLong``.
  public init(
    newImageWith others: UInt64, _ geometry: ClusterGeometry
  ) throws(TableTooLong) {
    let (count, tableClusters) = try Self.size(
      counting: others, after: 0, leastEntries: 1, geometry)
    let first = HostCluster(1)
    table = first..<(first + tableClusters)
    blocks = table.upperBound..<(table.upperBound + count)
    numbers = Array(0..<count)
    self.geometry = geometry
  }

  /// Plans for a table that is too short: one half as large again, or more, behind new blocks.
  ///
  /// All of it starts at the first cluster that the old table cannot count, so the new blocks are
  /// those that follow the old table's.
  ///
  /// - Parameters:
  ///   - entries: Of the old table.
  ///   - number: Of a block that the new table must have an entry for.
  ///   - geometry: The image's.
  /// - Throws: ``TableTooLong``.
  public init(
    growing entries: UInt64, toCover number: UInt64, _ geometry: ClusterGeometry
  ) throws(TableTooLong) {
    let wanted = max(entries + entries / 2, number + 1) + 1
    let (count, tableClusters) = try Self.size(
      counting: 0, after: entries, leastEntries: wanted, geometry)
    let first = geometry.clusters(ofRefcountBlock: entries).lowerBound
    blocks = first..<(first + count)
    table = blocks.upperBound..<(blocks.upperBound + tableClusters)
    numbers = Array(entries..<(entries + count))
    self.geometry = geometry
  }

  /// Plans for refcounts that are written anew: the table, then blocks only where they are needed, so
  /// that the size follows what is in use [ALLOC-11].
  ///
  /// - Parameters:
  ///   - used: The numbers of the blocks that must be there.
  ///   - geometry: The image's.
  ///   - findPlace: Finds the first run of as many clusters that nothing uses.
  /// - Throws: ``TableTooLong``.
  public init(
    counting used: [UInt64], _ geometry: ClusterGeometry,
    findPlace: (UInt64) -> Range<HostCluster>
  ) throws(TableTooLong) {
    var place = HostCluster(0)..<HostCluster(0)
    while true {
      let numbers = Set(used).union(geometry.refcountBlocks(of: place)).sorted()
      let entries = (numbers.last ?? 0) + 1
      let tableClusters = try Self.tableClusters(entries: entries, geometry)
      let needed = tableClusters + UInt64(numbers.count)
      if needed <= UInt64(place.count) {
        table = place.lowerBound..<(place.lowerBound + tableClusters)
        blocks = table.upperBound..<(place.lowerBound + needed)
        self.numbers = numbers
        self.geometry = geometry
        return
      }
      // Longer each time, and it ends: each cluster more adds far less than a block.
      place = findPlace(needed)
    }
  }

  /// The least number of blocks that count `others` clusters and themselves, all in one run that
  /// starts where a block begins to count.
  public static func blocks(counting others: UInt64, _ geometry: ClusterGeometry) -> UInt64 {
    // Each block has one refcount for itself.
    let left = geometry.refcountBlockEntries - 1
    return others / left + (others % left == 0 ? 0 : 1)
  }

  /// The least numbers of blocks and of table clusters that count `others` clusters and themselves.
  ///
  /// The table has as many entries as it must have at least, and before those of the blocks `before`
  /// others.
  private static func size(
    counting others: UInt64, after before: UInt64, leastEntries: UInt64,
    _ geometry: ClusterGeometry
  ) throws(TableTooLong) -> (blocks: UInt64, tableClusters: UInt64) {
    var tableClusters = geometry.clusters(covering: leastEntries * 8)
    while true {
      let count = blocks(counting: others + tableClusters, geometry)
      let needed = geometry.clusters(covering: (before + count) * 8)
      if needed <= tableClusters {
        guard tableClusters << UInt64(geometry.clusterBits) <= FormatLimit.refcountTableBytes else {
          throw TableTooLong(entries: max(leastEntries, before + count))
        }
        return (count, tableClusters)
      }
      tableClusters = needed
    }
  }

  private static func tableClusters(
    entries: UInt64, _ geometry: ClusterGeometry
  ) throws(TableTooLong) -> UInt64 {
    // The limit is a multiple of every cluster size.
    guard entries <= FormatLimit.refcountTableBytes / 8 else {
      throw TableTooLong(entries: entries)
    }
    return geometry.clusters(covering: entries * 8)
  }
}

extension RefcountPlan {
  /// Whether one of the blocks has the refcount of a cluster.
  public func covers(_ cluster: HostCluster) -> Bool {
    let number = geometry.refcountBlock(of: cluster)
    var low = 0
    var high = numbers.count
    while low < high {
      let middle = (low + high) / 2
      if numbers[middle] < number { low = middle + 1 } else { high = middle }
    }
    return low < numbers.count && numbers[low] == number
  }

  /// Where the table lies.
  public var tableOffset: HostOffset { geometry.start(of: table.lowerBound) }

  /// Where the block at `position` of ``numbers`` lies.
  public func block(at position: Int) -> HostOffset {
    geometry.start(of: blocks.lowerBound + UInt64(position))
  }

  /// Stores the blocks' entries among those of a table; leaves the others.
  ///
  /// - Parameter bytes: The whole table.
  public func storeEntries(in bytes: UnsafeMutableRawPointer) {
    for (position, number) in numbers.enumerated() {
      unsafe bytes.storeBE64(RefcountTableEntry(block: block(at: position)).raw, Int(number) * 8)
    }
  }
}

extension RefcountWidth {
  /// Sets refcounts of one block to one: of all clusters in `used` that the block counts.
  ///
  /// - Parameters:
  ///   - used: Clusters; the block may count some of them, or all.
  ///   - block: The whole block.
  ///   - number: Of the block.
  ///   - geometry: The image's.
  public static func countOnce(
    _ used: Range<HostCluster>, in block: UnsafeMutableRawPointer, number: UInt64,
    _ geometry: ClusterGeometry
  ) {
    let counted = geometry.clusters(ofRefcountBlock: number)
    for cluster in used.clamped(to: counted) {
      unsafe set(
        block, order: geometry.refcountOrder, index: Int(cluster - counted.lowerBound), value: 1)
    }
  }
}
