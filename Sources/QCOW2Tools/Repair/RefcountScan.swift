import BlockCore
import QCOW2Format

/// What an image refers to, whether its refcounts can be repaired where they are, and what else is
/// wrong with it.
///
/// Reads only.
final class RefcountScan {
  let check: ImageCheck
  /// The first finding that better refcounts would not make good; nil if there is none.
  let otherDamage: CheckFinding?
  /// Table and blocks lie where nothing else does: they are counted in the references.
  let structuresAreSound: Bool
  /// Clusters of the structures, sound or not; they stay in force until there are new ones.
  let structures: Set<UInt64>

  var geometry: ClusterGeometry { check.geometry }

  init(_ bytes: any ImageBytes) throws(ToolError) {
    let damage = FirstDamage()
    check = try ImageCheck(bytes) { damage.note($0) }
    try check.countUses()
    let structures = RefcountStructures(check)
    structuresAreSound = structures.isSound
    if structures.isSound {
      for cluster in structures.tableClusters { check.count(.refcountTable, cluster) }
      for cluster in structures.blocks { check.count(.refcountBlock, cluster) }
    }
    self.structures = Set(structures.blocks).union(structures.tableClusters)
    damage.noteUncountable(check)
    otherDamage = damage.found
  }

  /// What the refcount of a cluster must be; no more than a refcount can count.
  func references(_ cluster: UInt64) -> UInt64 {
    min(check.references.count(of: cluster), geometry.maxRefcount)
  }

  /// Whether nothing needs the bytes of a cluster, now or after a crash.
  func isFree(_ cluster: UInt64) -> Bool {
    references(cluster) == 0 && !structures.contains(cluster)
  }

  /// What the refcount of a cluster must be once the structures have been replaced.
  func referencesWithoutStructures(_ cluster: UInt64) -> UInt64 {
    structuresAreSound && structures.contains(cluster) ? 0 : references(cluster)
  }
}

extension ImageCheck {
  /// Counts a reference to a cluster that is known to be inside the file.
  func count(_ use: HostUse, _ cluster: UInt64) { _ = references.add(use, to: cluster) }
}

/// The first finding that is not refcount damage.
private final class FirstDamage {
  private(set) var found: CheckFinding?

  func note(_ finding: CheckFinding) {
    if found == nil && !finding.isRefcountDamage { found = finding }
  }

  /// Notes the first cluster with more references than a refcount can count.
  func noteUncountable(_ check: ImageCheck) {
    let largest = check.geometry.maxRefcount
    var position: UInt64 = 0
    while found == nil, largest < UInt64.max,
      let cluster = check.references.nextReferenced(from: position)
    {
      let count = check.references.count(of: cluster)
      if count > largest {
        note(
          .tooManyReferences(
            cluster: check.geometry.start(ofHostCluster: cluster), references: count,
            largest: largest))
      }
      position = cluster + 1
    }
  }
}

/// Where the refcount structures lie, and whether they lie there alone.
private struct RefcountStructures {
  private(set) var isSound = true
  private(set) var tableClusters: Range<UInt64>
  /// The clusters of the blocks; at most 2^20, the limit of the table.
  private(set) var blocks: [UInt64] = []

  init(_ check: ImageCheck) {
    let geometry = check.geometry
    let header = check.head.header
    let fileClusters = geometry.clusters(covering: check.head.fileLength)
    let first = geometry.hostCluster(of: HostOffset(header.refcountTableOffset))
    tableClusters = first..<(first + UInt64(header.refcountTableClusters))
    isSound =
      !tableClusters.isEmpty && tableClusters.upperBound <= fileClusters
      && tableClusters.allSatisfy { check.references.count(of: $0) == 0 }
    if tableClusters.upperBound > fileClusters {
      tableClusters = min(first, fileClusters)..<fileClusters
    }
    var seen: Set<UInt64> = []
    for entry in check.refcounts.table where entry.raw != 0 {
      guard !entry.hasReservedBits, let block = entry.block,
        block.bytes & geometry.clusterMask == 0, block.bytes < check.head.fileLength
      else {
        isSound = false
        continue
      }
      let cluster = geometry.hostCluster(of: block)
      if check.references.count(of: cluster) != 0 || tableClusters.contains(cluster)
        || !seen.insert(cluster).inserted
      {
        isSound = false
      }
      blocks.append(cluster)
    }
  }
}
