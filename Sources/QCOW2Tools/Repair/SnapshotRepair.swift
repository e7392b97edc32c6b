import BlockCore
import QCOW2Format

/// A snapshot table in which every entry has the extra data that version 3 asks for.
struct SnapshotRepair {
  /// The new table.
  let table: [UInt8]
  /// How many entries were not as they must be.
  let mended: UInt64

  /// Whether the extra data of an entry is too short or too long.
  static func isNeeded(_ entry: SnapshotEntry, _ header: Header) -> Bool {
    entry.isIncomplete(version: header.version)
      || entry.extraLength > SnapshotEntry.mostExtraLength
  }

  init(_ bytes: any ImageBytes, _ head: HeaderCluster, _ list: SnapshotList) throws(ToolError) {
    var table: [UInt8] = []
    var mended: UInt64 = 0
    var place = HostOffset(head.header.snapshotsOffset)
    for snapshot in list.snapshots {
      if Self.isNeeded(snapshot.entry, head.header) { mended += 1 }
      table += try Self.entry(snapshot.entry, bytes, at: place, head)
      table += [UInt8](repeating: 0, count: (8 - table.count % 8) % 8)
      place = place + snapshot.entry.paddedLength
    }
    self.table = table
    self.mended = mended
  }

  /// One entry, without the padding after it.
  private static func entry(
    _ entry: SnapshotEntry, _ bytes: any ImageBytes, at place: HostOffset, _ head: HeaderCluster
  ) throws(ToolError) -> [UInt8] {
    let start = try bytes.block(at: place, count: entry.keptLength)
    let texts = try bytes.block(at: place + entry.idPosition, count: entry.textLength)
    return start.withBytes { start in
      texts.withBytes { entry.completed(start: start, texts: $0, diskSize: head.diskSize) }
    }
  }
}
