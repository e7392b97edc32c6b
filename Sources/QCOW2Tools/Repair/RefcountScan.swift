import BlockCore
import QCOW2Format

/// What an image refers to, whether its refcounts can be repaired where they are, and what else is
/// wrong with it.
///
/// Reads only.
final class RefcountScan {
  let check: ImageCheck
  /// The first finding that better refcounts, and mended entries if they are planned, would not make
  /// good; nil if there is none.
  let otherDamage: CheckFinding?
  /// The first cluster that is a table and also the guest's data; nil if there is none.
  ///
  /// The data changes with the table's flags. To QEMU that is no error.
  let doubleUse: CheckFinding?
  /// Something cannot be followed, so what looks leaked must be kept.
  let hidesReferences: Bool
  /// No cluster has more references than a refcount can count.
  let isCountable: Bool
  /// Table and blocks lie where nothing else does: they are counted in the references.
  let structuresAreSound: Bool
  /// A table of another kind lies where a structure does: one of both pointers is wrong, and it
  /// cannot be told which one.
  let isAmbiguous: Bool
  /// Clusters of the structures, sound or not; they stay in force until there are new ones.
  let structures: Set<HostCluster>
  /// Findings of the refcount table's entries, as they are counted.
  let wrongTableEntries: UInt64
  /// Where a repaired snapshot table goes; empty if none is planned.
  private(set) var newSnapshotTable = HostCluster(0)..<HostCluster(0)
  /// Where the snapshot table is that a repaired one replaces.
  private(set) var oldSnapshotTable = HostCluster(0)..<HostCluster(0)

  var geometry: ClusterGeometry { check.geometry }

  /// The end of the file's clusters; one more, since what starts in a last cluster that is cut short
  /// may end in the one after it.
  var fileEnd: HostCluster { check.references.end }

  /// Counts references: with `plansRepair` as they are after ``EntryRepair``, with `mendsSnapshots` as
  /// they are after ``SnapshotRepair``, too.
  ///
  /// With `keepsLeaks` something is known to be lost that may have referred to what looks leaked.
  init(
    _ bytes: any ImageBytes, plansRepair: Bool, mendsSnapshots: Bool = true,
    keepsLeaks: Bool = false
  ) throws(ToolError) {
    let damage = Damage()
    check = try ImageCheck(bytes, plansRepair: plansRepair) { damage.note($0) }
    check.mendsSnapshots = plansRepair && mendsSnapshots
    check.notesLost = true
    try check.countUses()
    let structures = RefcountStructures(check)
    structuresAreSound = structures.isSound
    wrongTableEntries = structures.wrongEntries
    isAmbiguous = structures.isAmbiguous
    if structures.isSound {
      for cluster in structures.tableClusters { check.count(.refcountTable, cluster) }
      for cluster in structures.blocks { check.count(.refcountBlock, cluster) }
    }
    self.structures = Set(structures.blocks).union(structures.tableClusters)
    hidesReferences = keepsLeaks || damage.hidesReferences || structures.isAmbiguous
    isCountable = damage.isCountable(check)
    otherDamage = damage.found
    doubleUse = damage.doubleUse
    if let repair = check.snapshotRepair { placeSnapshotTable(repair) }
  }

  private func placeSnapshotTable(_ repair: SnapshotRepair) {
    let header = check.head.header
    let first = geometry.hostCluster(of: HostOffset(header.snapshotsOffset))
    let old = first..<(first + geometry.clusters(covering: check.snapshotTableLength))
    oldSnapshotTable = old
    newSnapshotTable = firstFree(geometry.clusters(covering: UInt64(repair.table.count)))
  }

  /// What the refcount of a cluster must be; no more than a refcount can count.
  func references(_ cluster: HostCluster) -> UInt64 {
    let count =
      cluster < fileEnd ? check.references.count(of: cluster) : check.lost[cluster] ?? 0
    return min(newSnapshotTable.contains(cluster) ? count + 1 : count, geometry.maxRefcount)
  }

  /// Whether nothing needs the bytes of a cluster, now or after a crash.
  func isFree(_ cluster: HostCluster) -> Bool {
    references(cluster) == 0 && !isOwn(cluster) && !(hidesReferences && cluster < fileEnd)
      && check.lost[cluster] == nil
  }

  /// Whether something refers to a cluster behind the end of the file, or may.
  ///
  /// Its refcount is not lowered: if the cluster were handed out again, two entries would share it.
  func isLost(_ cluster: HostCluster) -> Bool {
    cluster >= fileEnd && (check.lost[cluster] != nil || cluster >= check.endOfLost)
  }

  /// How many clusters behind the end of the file are referred to, of those that `isCovered` takes.
  func lostReferences(_ isCovered: (HostCluster) -> Bool) -> UInt64 {
    UInt64(check.lost.count { $0.value > 0 && isCovered($0.key) })
  }

  /// Whether the repair itself makes the cluster's refcount change.
  func isOwn(_ cluster: HostCluster) -> Bool {
    oldSnapshotTable.contains(cluster) || newSnapshotTable.contains(cluster)
      || (!structuresAreSound && structures.contains(cluster))
  }

  /// What the refcount of a cluster must be once the structures have been replaced.
  ///
  /// Where something cannot be followed, a cluster that nothing refers to is kept.
  func referencesWithoutStructures(_ cluster: HostCluster) -> UInt64 {
    let isKept = hidesReferences && cluster < fileEnd
    let isStructure = structures.contains(cluster)
    if structuresAreSound && isStructure { return 0 }
    return max(references(cluster), isKept && !isStructure ? 1 : 0)
  }

  /// The first run of clusters, `first` or later, that nothing needs; the file ends where the map does.
  func firstFree(_ count: UInt64, from first: HostCluster = HostCluster(1)) -> Range<HostCluster> {
    var start = first
    var cluster = first
    let end = max(
      fileEnd, newSnapshotTable.upperBound, (check.lost.keys.max() ?? HostCluster(0)) + 1)
    while cluster < end && cluster - start < count {
      if !isFree(cluster) { start = cluster + 1 }
      cluster += 1
    }
    return start..<(start + count)
  }
}

extension ImageCheck {
  /// Counts a reference to a cluster that is known to be inside the file.
  func count(_ use: HostUse, _ cluster: HostCluster) { _ = references.add(use, to: cluster) }
}

/// What the findings of a scan mean for a repair.
private final class Damage {
  /// The first finding that is not refcount damage.
  private(set) var found: CheckFinding?
  private(set) var hidesReferences = false
  private(set) var doubleUse: CheckFinding?

  func note(_ finding: CheckFinding) {
    if case .doubleUse = finding, doubleUse == nil { doubleUse = finding }
    if finding.hidesReferences { hidesReferences = true }
    if finding.severity == .remark || finding.isRefcountDamage { return }
    if found == nil { found = finding }
  }

  /// Notes the first cluster with more references than a refcount can count.
  ///
  /// - Returns: Whether there is none.
  func isCountable(_ check: ImageCheck) -> Bool {
    let largest = check.geometry.maxRefcount
    var position = HostCluster(0)
    while largest < UInt64.max, let cluster = check.references.nextReferenced(from: position) {
      let count = check.references.count(of: cluster)
      if count > largest {
        note(
          .tooManyReferences(
            cluster: check.geometry.start(of: cluster), references: count,
            largest: largest))
        return false
      }
      position = cluster + 1
    }
    return true
  }
}

/// Where the refcount structures lie, and whether they lie there alone.
private struct RefcountStructures {
  private(set) var isSound = true
  private(set) var tableClusters: Range<HostCluster>
  /// The clusters of the blocks; at most 2^20, the limit of the table.
  private(set) var blocks: [HostCluster] = []
  /// As qemu-img counts them: a block beyond the end of the file also lacks its own refcount.
  private(set) var wrongEntries: UInt64 = 0
  private(set) var isAmbiguous = false

  init(_ check: ImageCheck) {
    let geometry = check.geometry
    let header = check.head.header
    let fileEnd = HostCluster(geometry.clusters(covering: check.head.fileLength))
    let first = geometry.hostCluster(of: HostOffset(header.refcountTableOffset))
    tableClusters = first..<(first + UInt64(header.refcountTableClusters))
    isSound =
      !tableClusters.isEmpty && tableClusters.upperBound <= fileEnd
      && tableClusters.allSatisfy { check.references.count(of: $0) == 0 }
    // Until the header points elsewhere, nothing else may be written where it points.
    if !tableClusters.isEmpty {
      let end = geometry.start(of: tableClusters.upperBound)
      check.noteLost(geometry.start(of: first).bytes..<end.bytes)
    }
    // A table that is said to end behind the file is said to be too long: what lies behind its first
    // cluster may be anything.
    let isTooLong = tableClusters.upperBound > fileEnd
    if isTooLong { tableClusters = min(first, fileEnd)..<fileEnd }
    for cluster in isTooLong ? tableClusters.prefix(1) : tableClusters {
      noteOverlap(cluster, check)
    }
    let sureEntries = isTooLong ? Int(geometry.clusterSize / 8) : check.refcounts.table.count
    var seen: Set<HostCluster> = []
    for (index, entry) in check.refcounts.table.enumerated() where entry.raw != 0 {
      let faults = entry.faults(geometry, fileLength: check.head.fileLength)
      guard faults.isEmpty, let block = entry.block else {
        isSound = false
        if let block = entry.block, block.bytes < FormatLimit.hostOffset {
          check.noteLost(block.bytes..<(block.bytes + geometry.clusterSize))
        }
        wrongEntries += faults == .beyondEnd ? 2 : 1
        continue
      }
      let cluster = geometry.hostCluster(of: block)
      if index < sureEntries { noteOverlap(cluster, check) }
      if check.references.count(of: cluster) != 0 || tableClusters.contains(cluster)
        || !seen.insert(cluster).inserted
      {
        isSound = false
        wrongEntries += 1
      }
      blocks.append(cluster)
    }
  }

  private mutating func noteOverlap(_ cluster: HostCluster, _ check: ImageCheck) {
    switch check.references.use(of: cluster) {
    case .nothing, .header, .guestData: break
    default: isAmbiguous = true
    }
  }
}
