import BlockCore
import QCOW2Format

/// The snapshot table and the L1 tables of the snapshots.
extension ImageCheck {
  func checkSnapshots(into tables: inout [HostOffset: L2Uses]) throws(ToolError) {
    var list = try SnapshotList(reading: bytes, head, takesAnyExtraData: mendsSnapshots)
    if mendsSnapshots, !list.snapshots.allSatisfy({ isPlausible($0.entry) }) {
      mendsSnapshots = false
      list = try SnapshotList(reading: bytes, head)
    }
    let start = HostOffset(head.header.snapshotsOffset)
    snapshotTableLength = list.length
    if mendsSnapshots,
      list.snapshots.contains(where: { SnapshotRepair.isNeeded($0.entry, head.header) })
    {
      snapshotRepair = try SnapshotRepair(bytes, head, list)
    } else {
      add(.snapshotTable, at: start, length: list.length)
    }
    guard !list.snapshots.isEmpty else { return }
    if head.header.incompatible.contains(.externalDataFile) {
      found(.snapshotsWithDataFile(count: head.header.snapshotCount))
    }
    guard tablesFitTheFile(list) else { return }
    for (number, snapshot) in list.snapshots.enumerated() {
      try checkSnapshot(number, snapshot.entry, into: &tables)
    }
  }

  /// Whether an entry can be one: to write garbage anew would only make it look sound.
  private func isPlausible(_ entry: SnapshotEntry) -> Bool {
    entry.l1Table.bytes > 0 && !entry.isL1TooLong
      && entry.l1Faults(geometry, fileLength: head.fileLength).isEmpty
  }

  /// Bounds the work: L1 tables that together are longer than the file overlap each other.
  private func tablesFitTheFile(_ list: SnapshotList) -> Bool {
    // At most 2^16 times 2^25; longer tables are not followed anyway.
    let bytes = list.snapshots.filter { !$0.entry.isL1TooLong }.reduce(0) { $0 + $1.entry.l1Length }
    // A table may end in a part of the last cluster that the file does not have.
    guard bytes > head.fileLength + geometry.clusterSize else { return true }
    found(.snapshotTablesTooLong(bytes: bytes))
    return false
  }

  private func checkSnapshot(
    _ number: Int, _ entry: SnapshotEntry, into tables: inout [HostOffset: L2Uses]
  ) throws(ToolError) {
    let place = EntryPlace.snapshotTable(index: number)
    if snapshotRepair == nil, entry.isIncomplete(version: head.header.version) {
      found(.snapshotIncomplete(snapshot: number, extraLength: entry.extraLength))
    }
    guard !entry.l1Faults(geometry).contains(.unaligned) else {
      found(.unaligned(use: .l1Table, offset: entry.l1Table, entry: place))
      return
    }
    guard !entry.isL1TooLong else {
      found(.snapshotL1TooLarge(snapshot: number, entries: entry.l1Size))
      return
    }
    guard entry.l1Table.bytes <= 1 << 62 else {
      found(
        .beyondEnd(use: .l1Table, offset: entry.l1Table, length: entry.l1Length))
      return
    }
    try collectInactive(
      number, at: entry.l1Table, entries: Int(entry.l1Size), into: &tables)
  }
}
