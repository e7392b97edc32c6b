import BlockCore
import QCOW2Format

/// How often the L1 tables refer to an L2 table.
struct L2Uses {
  var active: UInt64 = 0
  var inactive: UInt64 = 0
  /// The first active L1 entry that does; meaningless if `active` is 0.
  var firstIndex = 0
}

/// Where an L1 table lies.
struct L1Place {
  let offset: HostOffset
  let entries: Int
  let isActive: Bool
}

/// L1 and L2 tables of the active disk and of the snapshots.
extension ImageCheck {
  func checkMapping() throws(ToolError) {
    var tables: [HostOffset: L2Uses] = [:]
    try collectActive(into: &tables)
    for (table, uses) in tables.sorted(by: { $0.key < $1.key }) where uses.active > 1 {
      found(.l2TableTwice(table: table, references: uses.active))
    }
    try checkSnapshots(into: &tables)
    l2Tables = tables
    try L2TableWalk(self, tables).run()
  }

  private func collectActive(into tables: inout [HostOffset: L2Uses]) throws(ToolError) {
    let offset = HostOffset(head.header.l1TableOffset)
    let entries = Int(head.header.l1Size)
    l1Tables.append(L1Place(offset: offset, entries: entries, isActive: true))
    try forEachL1Entry(at: offset, entries: entries) { index, entry throws(ToolError) in
      let place = EntryPlace.activeL1(index: index)
      if let table = entry.l2Table, let refcount = try refcounts.refcount(of: hostCluster(table)),
        (refcount == 1) != entry.isCopied
      {
        found(.copied(entry: place, raw: entry.raw, refcount: refcount))
      }
      guard let table = checkL1Entry(entry, place) else { return }
      var uses = tables[table] ?? L2Uses()
      if uses.active == 0 { uses.firstIndex = index }
      uses.active += 1
      tables[table] = uses
    }
  }

  func collectInactive(
    _ snapshot: Int, at offset: HostOffset, entries: Int,
    into tables: inout [HostOffset: L2Uses]
  ) throws(ToolError) {
    l1Tables.append(L1Place(offset: offset, entries: entries, isActive: false))
    try forEachL1Entry(at: offset, entries: entries) { index, entry throws(ToolError) in
      let place = EntryPlace.snapshotL1(snapshot: snapshot, index: index)
      guard let table = checkL1Entry(entry, place) else { return }
      tables[table, default: L2Uses()].inactive += 1
    }
  }

  /// Counts the L1 table itself and calls `body` with each entry that is not zero.
  private func forEachL1Entry(
    at offset: HostOffset, entries: Int,
    _ body: (Int, L1Entry) throws(ToolError) -> Void
  ) throws(ToolError) {
    add(.l1Table, at: offset, length: UInt64(entries) * 8)
    let chunk = 1 << 17  // entries: 1 MiB
    let buffer = IOBuffer(count: min(entries, chunk) * 8)
    let repair = plansRepair ? EntryRepair(head) : nil
    var done = 0
    while done < entries && offset.bytes + UInt64(done) * 8 < head.fileLength {
      let count = min(chunk, entries - done)
      try bytes.read(into: buffer, count: count * 8, at: offset + UInt64(done) * 8)
      for index in 0..<count {
        var entry = L1Entry(raw: buffer.be64(index * 8))
        if let mended = repair?.l1(entry) {
          mendable += 1
          entry = mended
        }
        if entry.raw != 0 { try body(done + index, entry) }
      }
      done += count
    }
  }

  /// Judges an L1 entry that is not zero and counts its reference.
  ///
  /// - Returns: The L2 table, if it can be read.
  private func checkL1Entry(_ entry: L1Entry, _ place: EntryPlace) -> HostOffset? {
    let faults = entry.faults(geometry, fileLength: head.fileLength)
    if faults.contains(.reservedBits) { found(.reservedBits(entry: place, raw: entry.raw)) }
    let table = entry.l2Table ?? HostOffset(0)  // then it overlaps the header, and says so
    add(.l2Table, at: table, length: geometry.clusterSize)
    guard !faults.contains(.unaligned) else {
      found(.unaligned(use: .l2Table, offset: table, entry: place))
      return nil
    }
    return faults.contains(.beyondEnd) ? nil : entry.l2Table
  }

  func hostCluster(_ offset: HostOffset) -> HostCluster { geometry.hostCluster(of: offset) }
}
