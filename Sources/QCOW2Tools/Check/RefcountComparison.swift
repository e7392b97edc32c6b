import BlockCore
import QCOW2Format

/// Compares refcounts with references, block by block, on the threads of the check.
///
/// Ranges without a block and without a reference are left out. Findings are told by cluster.
struct RefcountComparison {
  /// How many clusters make a run, if a block counts no more.
  private static let runClusters: UInt64 = 1 << 15

  private let check: ImageCheck
  private let geometry: ClusterGeometry
  /// The end of what is compared.
  private let end: HostCluster
  private let blocksPerRun: UInt64

  init(_ check: ImageCheck) {
    self.check = check
    geometry = check.geometry
    let clusters = HostCluster(geometry.clusters(covering: check.head.fileLength))
    // What starts in a last cluster that is cut short may end in the one after it.
    end = max(
      check.references.count(of: clusters) > 0 ? clusters + 1 : clusters,
      clusters + check.comparesBehindEnd)
    blocksPerRun = max(1, Self.runClusters >> UInt64(geometry.refcountBlockBits))
  }

  /// - Returns: The last cluster that has references, or a refcount.
  func run() throws(ToolError) -> HostCluster {
    let blocks = geometry.refcountBlocks(of: HostCluster(0)..<end).upperBound
    let runs = OrderedRuns(count: Int((blocks + blocksPerRun - 1) / blocksPerRun))
    let threads = check.threads
    let comparers = (0..<threads.count).map { _ in
      RefcountComparer(check, FindingsInOrder(runs, check), threads: threads.count)
    }
    // why unchecked: each comparer is used by one thread, and by this one when all have ended.
    let work = Unchecked((self, comparers))
    threads.run(forRuns: runs.count) { thread in
      let (comparison, comparers) = work.value
      let comparer = comparers[thread]
      runs.carryOut(comparer.findings) { run throws(ToolError) in
        try comparer.compare(comparison.clusters(of: run))
      }
    }
    try runs.end()
    return comparers.map(\.highest).max() ?? HostCluster(0)
  }

  private func clusters(of run: Int) -> Range<HostCluster> {
    let first = UInt64(run) * blocksPerRun
    let start = geometry.clusters(ofRefcountBlock: first).lowerBound
    return start..<min(end, start + blocksPerRun * geometry.refcountBlockEntries)
  }
}

/// Compares ranges of clusters; each thread has its own.
private final class RefcountComparer {
  let findings: FindingsInOrder
  /// The last cluster so far that has references, or a refcount.
  private(set) var highest = HostCluster(0)
  private let check: ImageCheck
  private let geometry: ClusterGeometry
  private let references: ReferenceMap
  private let refcounts: RefcountReader

  init(_ check: ImageCheck, _ findings: FindingsInOrder, threads: Int) {
    self.check = check
    self.findings = findings
    geometry = check.geometry
    references = check.references
    refcounts = RefcountReader(check.refcounts, threads: threads)
  }

  /// Compares clusters from the start of a refcount block on.
  func compare(_ clusters: Range<HostCluster>) throws(ToolError) {
    var cluster = clusters.lowerBound
    var touched = references.nextTouched(from: cluster, before: clusters.upperBound) ?? .max
    while cluster < clusters.upperBound {
      let index = geometry.refcountBlock(of: cluster)
      let next = min(
        clusters.upperBound, geometry.clusters(ofRefcountBlock: index).upperBound)
      switch refcounts.block(index) {
      case .none:
        if touched < cluster {
          touched = references.nextTouched(from: cluster, before: clusters.upperBound) ?? .max
        }
        if touched < next { compareMissing(cluster..<next) }
      case .unreadable: findings.add(.refcountsUnreadable(block: index))
      case .at(let offset):
        try check.checkpoint()
        compare(cluster..<next, try refcounts.contents(index, at: offset))
      }
      cluster = next
    }
  }

  private func compareMissing(_ clusters: Range<HostCluster>) {
    var position = clusters.lowerBound
    while let cluster = references.nextTouched(from: position, before: clusters.upperBound) {
      compare(cluster, refcount: 0)
      position = cluster + 1
    }
  }

  private func compare(_ clusters: Range<HostCluster>, _ block: IOBuffer) {
    var cluster = clusters.lowerBound
    while cluster < clusters.upperBound {
      let index = geometry.indexInRefcountBlock(of: cluster)
      if geometry.refcountOrder == 4, cluster < references.end {
        let limit = min(clusters.upperBound, references.end)
        cluster = withExtendedLifetime(block) {
          unsafe references.firstDifference(
            cluster..<limit, UnsafeRawPointer(block.base) + index * 2, &highest)
        }
        if cluster == limit { continue }
      }
      compare(
        cluster,
        refcount: block.refcount(
          geometry.indexInRefcountBlock(of: cluster), order: geometry.refcountOrder))
      cluster += 1
    }
  }

  private func compare(_ cluster: HostCluster, refcount: UInt64) {
    var count = references.count(of: cluster)
    if refcount == 0 && count == 0 { return }
    highest = max(highest, cluster)
    let offset = geometry.start(of: cluster)
    if count > geometry.maxRefcount {
      findings.add(
        .tooManyReferences(cluster: offset, references: count, largest: geometry.maxRefcount))
      count = geometry.maxRefcount
    }
    guard refcount != count else { return }
    if refcount > 0, refcount - 1 == count, check.isReserved(cluster) { return }
    findings.add(.refcount(cluster: offset, found: refcount, references: count))
  }
}
