import BlockCore
import QCOW2Format

/// What a rebuild may change.
package enum RepairMode: Equatable, Sendable {
  /// Refcounts that are too high, and COPIED flags if nothing else is wrong.
  case leaks
  /// All refcounts and COPIED flags.
  case all
}

/// What a rebuild has changed.
package struct RefcountChanges: Equatable, Sendable {
  /// Refcounts that were too low.
  package var raised: UInt64 = 0
  /// Refcounts that were too high.
  package var lowered: UInt64 = 0
  /// COPIED flags that were wrong.
  package var flags: UInt64 = 0
  /// The refcount table and all blocks were written anew elsewhere.
  package var hasNewStructures = false
  /// The dirty or corrupt bit was cleared.
  package var isNowClean = false

  package init() {}

  package var isEmpty: Bool { raised == 0 && lowered == 0 && flags == 0 && !hasNewStructures }

  /// What was done, for a log.
  package var text: String {
    "refcounts rebuilt: \(raised) were too low, \(lowered) too high; \(flags) COPIED flags were wrong"
      + (hasNewStructures ? "; the refcount table is a new one" : "")
  }
}

/// Makes refcounts and COPIED flags say what the tables of an image refer to.
///
/// Scan, which only reads → plan → apply, in this order, `|` being an fsync:
///
///     set DIRTY | raise refcounts that are too low | COPIED flags | lower those too high | clear DIRTY
///
/// Where the refcount structures themselves are broken, or lack a block, new ones are written into
/// clusters that nothing refers to, and the header is pointed at them in one sector. A crash leaves
/// the image dirty (version 3), so that the next open starts over; what the guest sees never
/// changes. The caller has the image locked for writing.
package enum RefcountRebuild {
  /// Rebuilds the refcounts of an image that is marked dirty, for a writer.
  ///
  /// - Throws: ``ToolError/notOnlyRefcounts(_:)`` with the image untouched if there is any other
  ///   damage; any other error leaves the image dirty.
  package static func run(
    _ file: any WritableImageBytes
  ) throws(ToolError) -> RefcountChanges {
    let scan = try RefcountScan(file)
    if let other = scan.otherDamage { throw .notOnlyRefcounts(other) }
    return try RefcountRepair(file, scan, .all).run()
  }

  /// Repairs what can be without risk: with damage of other kinds refcounts only go up, since
  /// something that was not followed may refer to what looks leaked.
  package static func repair(
    _ file: any WritableImageBytes, _ mode: RepairMode
  ) throws(ToolError) -> RefcountChanges {
    let scan = try RefcountScan(file)
    return try RefcountRepair(file, scan, mode).run()
  }
}

/// The steps of one rebuild.
private struct RefcountRepair {
  private let file: any WritableImageBytes
  private let scan: RefcountScan
  private let mode: RepairMode

  init(_ file: any WritableImageBytes, _ scan: RefcountScan, _ mode: RepairMode) {
    self.file = file
    self.scan = scan
    self.mode = mode
  }

  func run() throws(ToolError) -> RefcountChanges {
    let blocks = RefcountBlocks(file, scan)
    let isSafe = scan.otherDamage == nil
    let wanted = try blocks.differences()
    var changes = RefcountChanges()
    if mode == .all && isSafe && (!scan.structuresAreSound || wanted.missing > 0) {
      try rebuildStructures(wanted, &changes)
    } else if scan.structuresAreSound {
      try repairInPlace(blocks, wanted, isSafe: isSafe, &changes)
    }
    try finish(isSafe: isSafe, wanted, &changes)
    return changes
  }

  private func rebuildStructures(
    _ wanted: RefcountDifferences, _ changes: inout RefcountChanges
  ) throws(ToolError) {
    let new = try NewRefcounts(scan, isBlockDevice: file.isBlockDevice, length: file.length)
    try begin()
    try new.write(to: file, scan)
    changes.hasNewStructures = true
    changes.raised = wanted.low
    changes.lowered = wanted.high
    changes.flags = try CopiedFlags(file, scan).fix(.all)
    try file.sync()
  }

  private func repairInPlace(
    _ blocks: RefcountBlocks, _ wanted: RefcountDifferences, isSafe: Bool,
    _ changes: inout RefcountChanges
  ) throws(ToolError) {
    let raises = mode == .all && wanted.low > 0
    let lowers = isSafe && (wanted.high > 0 || wanted.beyondEnd > 0)
    let lacksNone = mode == .all || (wanted.low == 0 && wanted.missing == 0)
    let fixes: CopiedFlags.Fix? = lacksNone ? (isSafe ? .all : .clearing) : nil
    let flags = CopiedFlags(file, scan)
    let wrong = try fixes.map { fix throws(ToolError) in try flags.countWrong(fix) } ?? 0
    guard raises || lowers || wrong > 0 else { return }
    try begin()
    if raises {
      changes.raised = try blocks.raise()
      try file.sync()
    }
    if let fixes, wrong > 0 {
      changes.flags = try flags.fix(fixes)
      try file.sync()
    }
    if lowers {
      changes.lowered = try blocks.lower()
      try file.sync()
    }
  }

  /// Marks the image dirty before the first change: whoever finds it after a crash starts over.
  private func begin() throws(ToolError) {
    guard scan.check.head.header.version >= 3 else { return }
    try HeaderSector(file).insert(.dirty)
  }

  /// Clears the marks if nothing is wrong any more.
  private func finish(
    isSafe: Bool, _ wanted: RefcountDifferences, _ changes: inout RefcountChanges
  ) throws(ToolError) {
    let isComplete =
      isSafe
      && (mode == .all || (wanted.low == 0 && wanted.missing == 0 && scan.structuresAreSound))
    guard scan.check.head.header.version >= 3 else { return }
    let header = try HeaderSector(file)
    guard isComplete else {
      // Not worse than before: an image that was not dirty does not stay so.
      if !scan.check.head.header.incompatible.contains(.dirty) { try header.remove(.dirty) }
      return
    }
    changes.isNowClean = try header.remove([.dirty, .corrupt])
  }
}
