import BlockCore
import QCOW2Format

/// What a rebuild may change.
package enum RepairMode: Equatable, Sendable {
  /// Refcounts that are too high, and COPIED flags if nothing else is wrong.
  case leaks
  /// All refcounts and COPIED flags, and what is wrong in entries, snapshot tables and a cut L1 table.
  case all
}

/// What a repair has changed.
package struct RefcountChanges: Equatable, Sendable {
  /// Refcounts that were too low.
  package var raised: UInt64 = 0
  /// Refcounts that were too high.
  package var lowered: UInt64 = 0
  /// COPIED flags that were wrong.
  package var flags: UInt64 = 0
  /// Entries of L1 and L2 tables that were mended.
  package var entries: UInt64 = 0
  /// Entries of the snapshot table that were mended.
  package var snapshots: UInt64 = 0
  /// Wrong entries of the refcount table that was replaced.
  package var tableEntries: UInt64 = 0
  /// Tables that the file ended in, and that are whole again.
  package var tables: UInt64 = 0
  /// Autoclear bits that promised what is not there.
  package var promises: UInt64 = 0
  /// The refcount table and all blocks were written anew elsewhere.
  package var hasNewStructures = false
  /// The dirty or corrupt bit was cleared.
  package var isNowClean = false
  /// Why something was not written anew that should be.
  package var obstacle: ToolError?

  package init() {}

  package var isEmpty: Bool {
    lowered == 0 && counted == 0 && !hasNewStructures
  }

  /// Everything that was wrong but leaks.
  var counted: UInt64 { raised + flags + entries + snapshots + tableEntries + tables + promises }

  /// What was done, for a log.
  package var text: String {
    "refcounts rebuilt: \(raised) were too low, \(lowered) too high; \(flags) COPIED flags were wrong"
      + (hasNewStructures ? "; the refcount table is a new one" : "")
  }
}

/// Makes refcounts and COPIED flags say what the tables of an image refer to, and mends what can be
/// mended without a guess.
///
/// Scan, which only reads → plan → apply, in this order, `|` being an fsync:
///
///     clear autoclear bits, set DIRTY | raise refcounts that are too low | entries and COPIED flags,
///     new snapshot table | header points at it | lower refcounts that are too high | clear DIRTY
///
/// Where the refcount structures themselves are broken, or lack a block, new ones are written into
/// clusters that nothing refers to, and the header is pointed at them in one sector. A crash leaves
/// the image dirty (version 3), so that the next open starts over; what the guest sees never
/// changes. The caller has the image locked for writing.
package enum RefcountRebuild {
  /// Rebuilds the refcounts of an image that is marked dirty, for a writer.
  ///
  /// - Throws: ``ToolError/notOnlyRefcounts(_:)`` with the image untouched if there is any other
  ///   damage, or a table that is also the guest's data: its flags must not change unasked. Any other
  ///   error leaves the image dirty.
  package static func run(
    _ file: any WritableImageBytes
  ) throws(ToolError) -> RefcountChanges {
    let scan = try RefcountScan(file, plansRepair: false)
    if let other = scan.otherDamage ?? scan.doubleUse { throw .notOnlyRefcounts(other) }
    var repair = ImageRepair(file, scan, .all)
    return try repair.run()
  }

  /// Repairs each finding that can be repaired, whatever else is wrong.
  ///
  /// Refcounts only go up while something cannot be followed: it may refer to what looks leaked.
  package static func repair(
    _ file: any WritableImageBytes, _ mode: RepairMode
  ) throws(ToolError) -> RefcountChanges {
    let isExtended = mode == .all ? try extendL1Table(file) : false
    let scan = try RefcountScan(file, plansRepair: mode == .all, keepsLeaks: isExtended)
    let end = scan.geometry.start(of: scan.newSnapshotTable.upperBound).bytes
    guard file.isBlockDevice && end > file.length else {
      var repair = ImageRepair(file, scan, mode, isExtended: isExtended)
      return try repair.run()
    }
    let rest = try RefcountScan(
      file, plansRepair: true, mendsSnapshots: false, keepsLeaks: isExtended)
    var repair = ImageRepair(file, rest, mode, isExtended: isExtended)
    repair.note(.deviceTooSmall(needed: end, available: file.length))
    return try repair.run()
  }

  /// Gives a file that was cut inside its L1 table the rest of the table: zeros, as QEMU reads it.
  ///
  /// - Returns: Whether it was.
  private static func extendL1Table(_ file: any WritableImageBytes) throws(ToolError) -> Bool {
    let head = try HeaderCluster(reading: file)
    guard !file.isBlockDevice, head.header.isCutInL1(fileLength: head.fileLength) else {
      return false
    }
    let kept = head.header.autoclearToKeep(
      keepsBitmaps: head.last(.bitmaps) != nil)
    try HeaderSector(file).prepareForWriting(keeping: kept, marksDirty: false)
    try file.setLength(head.header.l1TableOffset + UInt64(head.header.l1Size) * 8)
    try file.sync()
    return true
  }
}
