import BlockCore
import QCOW2Format

/// The steps of one repair; see ``RefcountRebuild`` for their order.
struct ImageRepair {
  private let file: any WritableImageBytes
  private let scan: RefcountScan
  private let mode: RepairMode
  private let header: Header
  private var changes = RefcountChanges()

  /// `isExtended`: The file was given the rest of its L1 table before the scan.
  init(
    _ file: any WritableImageBytes, _ scan: RefcountScan, _ mode: RepairMode,
    isExtended: Bool = false
  ) {
    changes.tables = isExtended ? 1 : 0
    self.file = file
    self.scan = scan
    self.mode = mode
    header = scan.check.head.header
  }

  /// Notes what cannot be repaired for an outer reason.
  mutating func note(_ obstacle: ToolError) { changes.obstacle = obstacle }

  mutating func run() throws(ToolError) -> RefcountChanges {
    let blocks = RefcountBlocks(file, scan)
    let wanted = try blocks.differences()
    try prepare(marksDirty: false)
    let isReplaced = try replaceStructures(wanted)
    if !isReplaced && scan.structuresAreSound { try repairInPlace(blocks, wanted) }
    try finish(wanted, isReplaced: isReplaced)
    return changes
  }

  /// Before the first change: clears what a writer must not leave, and sets the mark by which the next
  /// repair starts over after a crash.
  private mutating func prepare(marksDirty: Bool) throws(ToolError) {
    let head = scan.check.head
    let kept = header.autoclearToKeep(keepsBitmaps: head.last(.bitmaps) != nil)
    try HeaderSector(file).prepareForWriting(keeping: kept, marksDirty: marksDirty)
    let gone = header.autoclear.subtracting(kept).intersection([.bitmaps, .rawExternalData])
    changes.promises = UInt64(gone.rawValue.nonzeroBitCount)
  }

  /// COPIED is set only where all references are known and could be counted.
  private var flags: EntryFixes.Flags {
    if mode == .leaks { return scan.otherDamage == nil ? .all : .clearing }
    return scan.isCountable && !scan.hidesReferences ? .all : .clearing
  }

  // MARK: New structures

  /// Writes all refcounts anew, if they cannot be repaired where they are.
  ///
  /// - Returns: Whether it did.
  private mutating func replaceStructures(
    _ wanted: RefcountDifferences
  ) throws(ToolError) -> Bool {
    guard mode == .all, !scan.structuresAreSound || wanted.missing > 0, !scan.isAmbiguous,
      header.problemForReading(fileLength: scan.check.head.fileLength) == nil
    else { return false }
    let new: NewRefcounts
    do throws(ToolError) {
      new = try NewRefcounts(scan, isBlockDevice: file.isBlockDevice, length: file.length)
    } catch {
      changes.obstacle = error
      return false
    }
    try prepare(marksDirty: true)
    try writeSnapshotTable()
    try new.write(to: file, scan)
    changes.hasNewStructures = true
    changes.tableEntries = scan.wrongTableEntries
    changes.raised = wanted.low + scan.lostReferences(new.covers)
    changes.lowered = scan.hidesReferences ? 0 : wanted.high
    let fixes = EntryFixes(
      file, scan, mends: scan.check.plansRepair, clearsBitmaps: true, flags, new)
    note(try fixes.apply())
    try file.sync()
    return true
  }

  // MARK: In place

  private mutating func repairInPlace(
    _ blocks: RefcountBlocks, _ wanted: RefcountDifferences
  ) throws(ToolError) {
    let raises = mode == .all && (wanted.low > 0 || wanted.own > 0 || wanted.lost > 0)
    // Without all blocks the snapshot table stays where it is, and its refcount as it was.
    let movesAll = wanted.missing == 0 || scan.newSnapshotTable.isEmpty
    let lowers =
      !scan.hidesReferences && movesAll
      && (wanted.high > 0 || wanted.beyondEnd > 0 || wanted.own > 0)
    let lacksNone = wanted.missing == 0 && (mode == .all || wanted.low == 0)
    let fixes = EntryFixes(
      file, scan, mends: scan.check.plansRepair, clearsBitmaps: mode == .all,
      lacksNone ? flags : .none)
    let entries = try fixes.count()
    guard raises || lowers || !entries.isEmpty else { return }
    try prepare(marksDirty: true)
    if raises {
      changes.raised = try blocks.raise()
      try file.sync()
    }
    if !entries.isEmpty {
      note(try fixes.apply())
      try file.sync()
    }
    if wanted.missing == 0 { try moveSnapshotTable() }
    if lowers {
      changes.lowered = try blocks.lower()
      try file.sync()
    }
  }

  private mutating func note(_ count: EntryFixes.Count) {
    changes.entries = count.entries
    changes.flags = count.flags
  }

  private mutating func moveSnapshotTable() throws(ToolError) {
    guard !scan.newSnapshotTable.isEmpty else { return }
    try writeSnapshotTable()
    try file.sync()
    try HeaderSector(file).setSnapshotTable(
      at: scan.geometry.start(of: scan.newSnapshotTable.lowerBound))
  }

  /// Writes the new snapshot table, in whole clusters, where nothing points as yet.
  private mutating func writeSnapshotTable() throws(ToolError) {
    guard let repair = scan.check.snapshotRepair else { return }
    let clusters = scan.newSnapshotTable
    let block = IOBuffer(
      starting: repair.table, count: clusters.count << scan.geometry.clusterBits)
    try unsafe file.write(
      block.bytes, at: scan.geometry.start(of: clusters.lowerBound))
    withExtendedLifetime(block) {}
    changes.snapshots = repair.mended
  }

  // MARK: The marks

  /// Takes the marks away of which nothing is true any more.
  private mutating func finish(
    _ wanted: RefcountDifferences, isReplaced: Bool
  ) throws(ToolError) {
    let sector = HeaderSector(file)
    let isInPlace =
      scan.structuresAreSound && wanted.missing == 0 && (mode == .all || wanted.low == 0)
    guard scan.isCountable, !scan.hidesReferences, isReplaced || isInPlace else {
      // Not worse than before: an image that was not dirty does not stay so.
      if !header.incompatible.contains(.dirty) { try sector.remove(.dirty) }
      return
    }
    // Refcounts are right now. Whatever else is wrong keeps the image marked corrupt.
    let marks: IncompatibleFeatures = scan.otherDamage == nil ? [.dirty, .corrupt] : .dirty
    changes.isNowClean = try sector.remove(marks)
  }
}
