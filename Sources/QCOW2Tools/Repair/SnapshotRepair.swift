import BlockCore
import QCOW2Format

/// A snapshot table in which every entry has the extra data that version 3 asks for.
///
/// What an entry lacks is filled in: the VM state's size from the old field, the size of the disk
/// from the header, no instruction count. What exceeds the limit is dropped, which no program can
/// have read.
struct SnapshotRepair {
  /// The new table.
  let table: [UInt8]
  /// How many entries were not as they must be.
  let mended: UInt64

  /// Whether the extra data of an entry is too short or too long.
  static func isNeeded(_ entry: SnapshotEntry, _ header: Header) -> Bool {
    (header.version >= 3 && entry.extraLength < SnapshotEntry.leastExtraLengthV3)
      || entry.extraLength > SnapshotEntry.mostExtraLength
  }

  init(_ bytes: any ImageBytes, _ head: ImageHead, _ list: SnapshotList) throws(ToolError) {
    var table: [UInt8] = []
    var mended: UInt64 = 0
    var place = HostOffset(head.header.snapshotsOffset)
    for snapshot in list.snapshots {
      if Self.isNeeded(snapshot.entry, head.header) { mended += 1 }
      table += try Self.entry(snapshot.entry, bytes, at: place, head)
      table += [UInt8](repeating: 0, count: (8 - table.count % 8) % 8)
      place = place + ((snapshot.entry.length + 7) & ~7)
    }
    self.table = table
    self.mended = mended
  }

  /// One entry, without the padding after it.
  private static func entry(
    _ entry: SnapshotEntry, _ bytes: any ImageBytes, at place: HostOffset, _ head: ImageHead
  ) throws(ToolError) -> [UInt8] {
    let kept = min(entry.extraLength, SnapshotEntry.mostExtraLength)
    let old = try bytes.block(at: place, count: SnapshotEntry.fixedLength + Int(kept))
    let known = [
      entry.vmStateSize, entry.diskSize ?? head.diskSize, entry.instructionCount ?? UInt64.max,
    ]
    var extra = known.flatMap(Self.bigEndian)
    if Int(kept) > SnapshotEntry.knownExtraLength {
      extra += old.copy(
        at: SnapshotEntry.fixedLength + SnapshotEntry.knownExtraLength,
        count: Int(kept) - SnapshotEntry.knownExtraLength)
    }
    let texts = try bytes.block(
      at: place + entry.idPosition, count: Int(entry.idLength) + Int(entry.nameLength))
    var new = old.copy(at: 0, count: SnapshotEntry.fixedLength - 4)
    new += Self.bigEndian(UInt64(extra.count)).suffix(4)
    new += extra
    new += texts.copy(at: 0, count: texts.count)
    return new
  }

  private static func bigEndian(_ value: UInt64) -> [UInt8] {
    (1...8).map { UInt8(truncatingIfNeeded: value >> UInt64(64 - $0 * 8)) }
  }
}
