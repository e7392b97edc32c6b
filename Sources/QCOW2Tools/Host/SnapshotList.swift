import BlockCore
package import QCOW2Format

/// A snapshot with its texts.
package struct Snapshot: Equatable, Sendable {
  package let entry: SnapshotEntry
  package let id: String
  package let name: String
}

/// The snapshot table as a whole.
package struct SnapshotList: Equatable, Sendable {
  package let snapshots: [Snapshot]
  /// The bytes from the start of the first to the end of the last entry.
  package let length: UInt64

  /// Reads the table; its limits are QEMU's.
  package init(reading bytes: any ImageBytes, _ head: ImageHead) throws(ToolError) {
    var snapshots: [Snapshot] = []
    var length: UInt64 = 0
    let start = HostOffset(head.header.snapshotsOffset)
    for index in 0..<UInt64(head.header.snapshotCount) {
      length = (length + 7) & ~7
      let snapshot = try Self.snapshot(bytes, at: start + length, index)
      length += snapshot.entry.length
      guard length <= SnapshotEntry.mostTableLength else {
        throw .format(
          .badField(
            name: "length of the snapshot table", found: length,
            allowed: "at most \(SnapshotEntry.mostTableLength)"))
      }
      snapshots.append(snapshot)
    }
    self.snapshots = snapshots
    self.length = length
  }

  private static func snapshot(
    _ bytes: any ImageBytes, at start: HostOffset, _ index: UInt64
  ) throws(ToolError) -> Snapshot {
    let fixedLength = SnapshotEntry.fixedLength
    let fixed = try bytes.block(
      at: start, count: fixedLength + SnapshotEntry.knownExtraLength)
    var entry = unsafe SnapshotEntry(parsing: fixed.base)
    guard entry.extraLength <= SnapshotEntry.mostExtraLength else {
      throw .format(
        .badField(
          name: "extra_data_size of a snapshot", found: UInt64(entry.extraLength),
          allowed: "at most \(SnapshotEntry.mostExtraLength)"))
    }
    unsafe entry.applyExtra(fixed.base + fixedLength)
    let idLength = Int(entry.idLength)
    let texts = try bytes.block(
      at: start + entry.idPosition, count: idLength + Int(entry.nameLength))
    return Snapshot(
      entry: entry, id: texts.text(at: 0, count: idLength),
      name: texts.text(at: idLength, count: Int(entry.nameLength)))
  }
}
