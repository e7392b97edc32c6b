import BlockCore
import QCOW2Format
import Synchronization

/// Which host clusters must not be written as data (docs/design.md, section 4, rule 11).
///
/// Fixed areas (header, encryption header) are ranges; the refcount table and the L1 table are ranges
/// that move when they grow; L2 tables, refcount blocks, the snapshot table and the L1 tables of
/// snapshots are a ``ClusterSet``, which jobs change.
final class MetadataMap: @unchecked Sendable {  // why: constants, atomics and a concurrent set
  private let fixed: [Range<HostCluster>]
  private let refcountTable: MovingArea
  private let l1Table: MovingArea
  /// All of these lie below, and most data above, which one comparison says.
  ///
  /// Only ever grows.
  private let endOfAreas: Atomic<UInt64>
  let tables: ClusterSet

  /// The end of the highest cluster that a table entry maps.
  ///
  /// May lie beyond the end of a file that was cut. Set while the image is opened, before anyone shares the map.
  private(set) var endOfMapped = HostCluster(0)

  func noteMapped(_ cluster: HostCluster) { endOfMapped = max(endOfMapped, cluster + 1) }

  init(
    fixed: [Range<HostCluster>], refcountTable: Range<HostCluster>, l1Table: Range<HostCluster>,
    expectedTables: Int
  ) throws(ImageError) {
    self.fixed = fixed
    self.refcountTable = MovingArea(refcountTable)
    self.l1Table = MovingArea(l1Table)
    endOfAreas = Atomic(
      (fixed + [refcountTable, l1Table]).reduce(0) { max($0, $1.upperBound.number) })
    tables = try ClusterSet(minimumCapacity: expectedTables)
  }

  /// Whether the host cluster holds metadata.
  @inline(__always) func contains(_ cluster: HostCluster) -> Bool {
    fixedContains(cluster) || tables.contains(cluster)
  }

  /// Whether the host cluster belongs to an area that the header points at, or to the header.
  @inline(__always) func fixedContains(_ cluster: HostCluster) -> Bool {
    YieldPoint.metadata.pass()
    if cluster.number >= endOfAreas.load(ordering: .acquiring) { return false }
    return isInArea(cluster)
  }

  @inline(never) private func isInArea(_ cluster: HostCluster) -> Bool {
    for range in fixed where range.contains(cluster) { return true }
    return refcountTable.contains(cluster) || l1Table.contains(cluster)
  }

  /// The first cluster of `clusters` that holds metadata; nil if there is none.
  @inline(__always) func firstOverlap(_ clusters: Range<HostCluster>) -> HostCluster? {
    var cluster = clusters.lowerBound
    while cluster < clusters.upperBound {
      if contains(cluster) { return cluster }
      cluster += 1
    }
    return nil
  }

  func moveRefcountTable(to clusters: Range<HostCluster>) { move(refcountTable, to: clusters) }

  func moveL1Table(to clusters: Range<HostCluster>) { move(l1Table, to: clusters) }

  private func move(_ area: borrowing MovingArea, to clusters: Range<HostCluster>) {
    YieldPoint.metadata.pass()
    endOfAreas.max(clusters.upperBound.number, ordering: .acquiringAndReleasing)
    area.move(to: clusters)
  }
}

/// Consecutive host clusters that hold a table which moves when it grows.
///
/// One word, so that a reader sees one place or the other: what lies between both is data.
private struct MovingArea: ~Copyable {
  /// Tables have at most 2^16 clusters, and host clusters less than 47 bits.
  private static let countBits: UInt64 = 17
  private static let countMask: UInt64 = (1 << countBits) - 1
  private let place: Atomic<UInt64>

  init(_ clusters: Range<HostCluster>) { place = Atomic(Self.word(clusters)) }

  private static func word(_ clusters: Range<HostCluster>) -> UInt64 {
    clusters.lowerBound.number << countBits
      | min(clusters.upperBound - clusters.lowerBound, countMask)
  }

  @inline(__always) func contains(_ cluster: HostCluster) -> Bool {
    YieldPoint.metadata.pass()
    let word = place.load(ordering: .relaxed)
    let start = HostCluster(word >> Self.countBits)
    return cluster >= start && cluster - start < word & Self.countMask
  }

  func move(to clusters: Range<HostCluster>) {
    YieldPoint.metadata.pass()
    place.store(Self.word(clusters), ordering: .relaxed)
  }
}
