import BlockCore
import QCOW2Format

/// Judges the entries of L2 tables and counts their references; each thread of a check has its own.
final class L2TableJudge {
  /// A cluster that has guest data and, from before the walk, another use.
  struct Overlap {
    let cluster: HostCluster
    let other: HostUse
  }

  /// What is common to all entries of a table.
  private struct Table {
    let offset: HostOffset
    let uses: L2Uses
    /// Where a data cluster would have to lie to go on from the one before it.
    var next: UInt64?

    var times: UInt64 { uses.active &+ uses.inactive }
  }

  private let check: ImageCheck
  private let rules: EntryRules
  private let geometry: ClusterGeometry
  private let references: ReferenceMap
  private let refcounts: RefcountReader
  let findings: FindingsInOrder
  private let repair: EntryRepair?
  /// The bits that an entry may have that needs no closer look.
  private let plainBits: UInt64
  /// Guest clusters with a host cluster, and what is told of them.
  private(set) var counts = CheckResult()
  /// Entries that a repair mends.
  private(set) var mendable: UInt64 = 0
  /// In no order; at most as many as there are clusters of metadata.
  private(set) var overlaps: [Overlap] = []

  init(_ check: ImageCheck, _ findings: FindingsInOrder, threads: Int) {
    self.check = check
    self.findings = findings
    rules = check.rules
    geometry = check.geometry
    references = check.references
    refcounts = RefcountReader(check.refcounts, threads: threads)
    repair = check.plansRepair ? EntryRepair(check.head) : nil
    let zero = rules.hasZeroFlag ? EntryBits.zero : 0
    plainBits = (EntryBits.offset & ~geometry.clusterMask) | EntryBits.copied | zero
  }

  /// Judges a table.
  ///
  /// - Parameters:
  ///   - offset: Where it lies.
  ///   - bytes: Its bytes, a cluster.
  ///   - uses: How often L1 tables refer to it.
  /// - Throws: What a refcount block that cannot be read leads to.
  func judge(
    _ offset: HostOffset, _ bytes: UnsafeRawPointer, _ uses: L2Uses
  ) throws(ToolError) {
    var table = Table(offset: offset, uses: uses)
    let step = 1 << geometry.l2EntryBits
    let mayBePlain = repair == nil && !rules.hasDataFile
    for index in 0..<Int(geometry.l2Entries) {
      let raw = unsafe bytes.be64(index &* step)
      let bitmap = unsafe rules.isExtended ? bytes.be64(index &* step &+ 8) : 0
      if raw | bitmap == 0 { continue }
      if mayBePlain, countPlain(raw, bitmap, &table) { continue }
      try judge(L2Entry(raw: raw), SubclusterBitmap(raw: bitmap), index, &table)
    }
  }

  /// Counts an entry of a data cluster in which nothing is wrong, if a short look is enough to say so.
  ///
  /// It does what the closer look would do, and most entries of most images are such.
  ///
  /// - Returns: Whether it is one; else nothing has been done.
  @inline(__always)
  private func countPlain(_ raw: UInt64, _ bitmap: UInt64, _ table: inout Table) -> Bool {
    let offset = raw & EntryBits.offset
    guard raw & ~plainBits == 0, offset != 0, offset < check.head.fileLength,
      bitmap & (bitmap >> 32) & 0xffff_ffff == 0
    else { return false }
    let cluster = geometry.hostCluster(of: HostOffset(offset))
    if table.uses.active > 0 {
      guard let refcount = refcounts.recent(cluster),
        (refcount == 1) == (raw & EntryBits.copied != 0)
      else { return false }
      countAllocated(HostOffset(offset), &table)
    }
    addGuestData(cluster, table.times)
    return true
  }

  private func judge(
    _ found: L2Entry, _ bitmap: SubclusterBitmap, _ index: Int, _ table: inout Table
  ) throws(ToolError) {
    var entry = found
    if let mended = repair?.l2(entry, bitmap: bitmap) {
      mendable += 1
      entry = mended
    }
    let place = EntryPlace.l2(table: table.offset, index: index)
    let kind = entry.kind(hasZeroFlag: rules.hasZeroFlag)
    if kind == .compressed {
      judgeCompressed(entry, bitmap, place, table)
      return
    }
    let faults = rules.faults(entry)
    if faults.contains(.reservedBits) {
      findings.add(.reservedBits(entry: place, raw: entry.raw))
    }
    let isAtZero = rules.hasDataFile && entry.isCopied && kind == .unallocated
    if let cluster = entry.hostCluster ?? (isAtZero ? HostOffset(0) : nil) {
      if bitmap.isInvalid {
        findings.add(.subclusters(entry: place, raw: entry.raw, bitmap: bitmap.raw))
      }
      if faults.contains(.unaligned) {
        findings.add(.unaligned(use: .guestData, offset: cluster, entry: place))
      }
      try judgeStandard(entry, cluster, index, &table)
    } else if bitmap.allocated != 0 {
      findings.add(.subclusters(entry: place, raw: entry.raw, bitmap: bitmap.raw))
    }
  }

  private func judgeStandard(
    _ entry: L2Entry, _ cluster: HostOffset, _ index: Int, _ table: inout Table
  ) throws(ToolError) {
    if table.uses.active > 0 {
      countAllocated(cluster, &table)
      try judgeCopied(entry, cluster, .l2(table: table.offset, index: index))
    }
    if rules.hasDataFile {
      judgeDataFileOffset(cluster, index, table)
    } else {
      addGuestData(cluster, length: geometry.clusterSize, table.times)
    }
  }

  @inline(__always)
  private func countAllocated(_ cluster: HostOffset, _ table: inout Table) {
    counts.allocatedClusters &+= table.uses.active
    if let next = table.next, next != cluster.bytes {
      counts.fragmentedClusters &+= table.uses.active
    }
    table.next = cluster.bytes &+ geometry.clusterSize
  }

  private func judgeCopied(
    _ entry: L2Entry, _ cluster: HostOffset, _ place: EntryPlace
  ) throws(ToolError) {
    let hostCluster = geometry.hostCluster(of: cluster)
    let refcount = rules.hasDataFile ? 1 : try refcounts.refcount(of: hostCluster)
    guard let refcount, (refcount == 1) != entry.isCopied else { return }
    findings.add(.copied(entry: place, raw: entry.raw, refcount: refcount))
  }

  private func judgeDataFileOffset(_ cluster: HostOffset, _ index: Int, _ table: Table) {
    guard table.uses.active > 0 else { return }
    let number = UInt64(table.uses.firstIndex) << UInt64(geometry.l2Bits) | UInt64(index)
    let guest = GuestOffset(number << UInt64(geometry.clusterBits))
    if rules.isPlaced(cluster, guest) { return }
    let place = EntryPlace.l2(table: table.offset, index: index)
    findings.add(.dataFileOffset(entry: place, found: cluster, guest: guest))
  }

  private func judgeCompressed(
    _ entry: L2Entry, _ bitmap: SubclusterBitmap, _ place: EntryPlace, _ table: Table
  ) {
    if entry.isCopied { findings.add(.copiedCompressed(entry: place, raw: entry.raw)) }
    guard !rules.hasDataFile else {
      findings.add(.compressedWithDataFile(entry: place, raw: entry.raw))
      return
    }
    if bitmap.raw != 0 {
      findings.add(.compressedBitmap(entry: place, raw: entry.raw, bitmap: bitmap.raw))
    }
    let compressed = CompressedDescriptor(entry, geometry)
    addGuestData(compressed.offset, length: compressed.length, table.times)
    counts.allocatedClusters &+= table.uses.active
    counts.compressedClusters &+= table.uses.active
    counts.fragmentedClusters &+= table.uses.active
  }

  // MARK: References

  private func addGuestData(_ offset: HostOffset, length: UInt64, _ times: UInt64) {
    guard check.isInFile(offset, length: length) else {
      findings.add(.beyondEnd(use: .guestData, offset: offset, length: length))
      check.noteBeyondEnd(offset, length: length, times: times)
      return
    }
    let last = geometry.hostCluster(of: HostOffset(offset.bytes + length - 1))
    for cluster in geometry.hostCluster(of: offset)...last { addGuestData(cluster, times) }
  }

  /// The first reference to a cluster with another use notes the overlap.
  ///
  /// Later ones see guest data or a conflict there.
  @inline(__always)
  private func addGuestData(_ cluster: HostCluster, _ times: UInt64) {
    let before = references.add(.guestData, to: cluster, times: times)
    if before == .nothing || before == .guestData || before == .conflict { return }
    overlaps.append(Overlap(cluster: cluster, other: before))
    if !before.isShared { references.markConflict(cluster) }
  }
}
