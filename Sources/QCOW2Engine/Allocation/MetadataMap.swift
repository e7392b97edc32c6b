import QCOW2Format
import Synchronization

/// Which host clusters must not be written as data (DESIGN.md section 4, rule 11).
///
/// Fixed areas (header, L1 table, snapshot table) are ranges; the refcount table is a range that
/// moves when it grows; L2 tables and refcount blocks are a ``ClusterSet``.
final class MetadataMap: @unchecked Sendable {  // why: constants, atomics and a concurrent set
  private let fixed: [Range<UInt64>]
  private let refcountTableStart: Atomic<UInt64>
  private let refcountTableEnd: Atomic<UInt64>
  let tables: ClusterSet

  /// The end of the highest cluster that a table entry maps, in host clusters.
  ///
  /// May lie beyond the end of a file that was cut. Set while the image is opened, before anyone shares the map.
  private(set) var endOfMapped: UInt64 = 0

  func noteMapped(_ cluster: UInt64) { endOfMapped = max(endOfMapped, cluster + 1) }

  init(fixed: [Range<UInt64>], refcountTable: Range<UInt64>, expectedTables: Int) {
    self.fixed = fixed
    refcountTableStart = Atomic(refcountTable.lowerBound)
    refcountTableEnd = Atomic(refcountTable.upperBound)
    tables = ClusterSet(minimumCapacity: expectedTables)
  }

  /// Whether the host cluster holds metadata.
  @inline(__always) func contains(_ cluster: UInt64) -> Bool {
    fixedContains(cluster) || tables.contains(cluster)
  }

  /// Whether the host cluster belongs to an area that the header points at, or to the header.
  @inline(__always) func fixedContains(_ cluster: UInt64) -> Bool {
    for range in fixed where range.contains(cluster) { return true }
    return cluster >= refcountTableStart.load(ordering: .relaxed)
      && cluster < refcountTableEnd.load(ordering: .relaxed)
  }

  /// The first cluster of `clusters` that holds metadata; nil if there is none.
  @inline(__always) func firstOverlap(_ clusters: Range<UInt64>) -> UInt64? {
    var cluster = clusters.lowerBound
    while cluster < clusters.upperBound {
      if contains(cluster) { return cluster }
      cluster &+= 1
    }
    return nil
  }

  /// The refcount table has moved; for a moment the union of both is protected.
  func moveRefcountTable(to clusters: Range<UInt64>) {
    refcountTableEnd.store(
      max(clusters.upperBound, refcountTableEnd.load(ordering: .relaxed)), ordering: .relaxed)
    refcountTableStart.store(clusters.lowerBound, ordering: .relaxed)
    refcountTableEnd.store(clusters.upperBound, ordering: .relaxed)
  }
}
