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
    for (table, uses) in tables where uses.active > 1 {
      found(.l2TableTwice(table: table, references: uses.active))
    }
    try checkSnapshots(into: &tables)
    let buffer = IOBuffer(count: Int(geometry.clusterSize))
    l2Tables = tables
    for (table, uses) in tables.sorted(by: { $0.key < $1.key }) {
      try bytes.read(into: buffer, count: buffer.count, at: table)
      try checkL2Table(table, buffer, uses)
    }
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

  func hostCluster(_ offset: HostOffset) -> UInt64 { geometry.hostCluster(of: offset) }
}

/// The entries of one L2 table.
extension ImageCheck {
  /// What is common to all entries of a table.
  private struct Table {
    let offset: HostOffset
    let uses: L2Uses
    /// Where a data cluster would have to lie to go on from the one before it.
    var next: UInt64?

    var times: UInt64 { uses.active &+ uses.inactive }
  }

  fileprivate func checkL2Table(
    _ offset: HostOffset, _ buffer: IOBuffer, _ uses: L2Uses
  ) throws(ToolError) {
    var table = Table(offset: offset, uses: uses)
    let step = 1 << geometry.l2EntryBits
    let repair = plansRepair ? EntryRepair(head) : nil
    for index in 0..<Int(geometry.l2Entries) {
      var entry = L2Entry(raw: buffer.be64(index &* step))
      let bitmap = SubclusterBitmap(raw: rules.isExtended ? buffer.be64(index &* step &+ 8) : 0)
      if entry.raw | bitmap.raw == 0 { continue }
      if let mended = repair?.l2(entry, bitmap: bitmap) {
        mendable += 1
        entry = mended
      }
      try checkL2Entry(entry, bitmap, index, &table)
    }
  }

  private func checkL2Entry(
    _ entry: L2Entry, _ bitmap: SubclusterBitmap, _ index: Int, _ table: inout Table
  ) throws(ToolError) {
    let place = EntryPlace.l2(table: table.offset, index: index)
    let kind = entry.kind(hasZeroFlag: rules.hasZeroFlag)
    if kind == .compressed {
      checkCompressed(entry, bitmap, place, table)
      return
    }
    let faults = rules.faults(entry)
    if faults.contains(.reservedBits) { found(.reservedBits(entry: place, raw: entry.raw)) }
    let isAtZero = rules.hasDataFile && entry.isCopied && kind == .unallocated
    if let cluster = entry.hostCluster ?? (isAtZero ? HostOffset(0) : nil) {
      if bitmap.isInvalid { found(.subclusters(entry: place, raw: entry.raw, bitmap: bitmap.raw)) }
      if faults.contains(.unaligned) {
        found(.unaligned(use: .guestData, offset: cluster, entry: place))
      }
      try checkStandard(entry, cluster, index, &table)
    } else if bitmap.allocated != 0 {
      found(.subclusters(entry: place, raw: entry.raw, bitmap: bitmap.raw))
    }
  }

  private func checkStandard(
    _ entry: L2Entry, _ cluster: HostOffset, _ index: Int, _ table: inout Table
  ) throws(ToolError) {
    if table.uses.active > 0 {
      countAllocated(cluster, &table)
      try checkCopied(entry, cluster, .l2(table: table.offset, index: index))
    }
    if rules.hasDataFile {
      checkDataFileOffset(cluster, index, table)
    } else {
      add(.guestData, at: cluster, length: geometry.clusterSize, times: table.times)
    }
  }

  private func countAllocated(_ cluster: HostOffset, _ table: inout Table) {
    result.allocatedClusters &+= table.uses.active
    if let next = table.next, next != cluster.bytes {
      result.fragmentedClusters &+= table.uses.active
    }
    table.next = cluster.bytes &+ geometry.clusterSize
  }

  private func checkCopied(
    _ entry: L2Entry, _ cluster: HostOffset, _ place: EntryPlace
  ) throws(ToolError) {
    let refcount = rules.hasDataFile ? 1 : try refcounts.refcount(of: hostCluster(cluster))
    guard let refcount, (refcount == 1) != entry.isCopied else { return }
    found(.copied(entry: place, raw: entry.raw, refcount: refcount))
  }

  private func checkDataFileOffset(_ cluster: HostOffset, _ index: Int, _ table: Table) {
    guard table.uses.active > 0 else { return }
    let number = UInt64(table.uses.firstIndex) << UInt64(geometry.l2Bits) | UInt64(index)
    let guest = GuestOffset(number << UInt64(geometry.clusterBits))
    if rules.isPlaced(cluster, guest) { return }
    let place = EntryPlace.l2(table: table.offset, index: index)
    found(.dataFileOffset(entry: place, found: cluster, guest: guest))
  }

  private func checkCompressed(
    _ entry: L2Entry, _ bitmap: SubclusterBitmap, _ place: EntryPlace, _ table: Table
  ) {
    if entry.isCopied { found(.copiedCompressed(entry: place, raw: entry.raw)) }
    guard !rules.hasDataFile else {
      found(.compressedWithDataFile(entry: place, raw: entry.raw))
      return
    }
    guard bitmap.raw == 0 else {
      found(.subclusters(entry: place, raw: entry.raw, bitmap: bitmap.raw))
      return
    }
    let compressed = CompressedDescriptor(entry, geometry)
    add(.guestData, at: compressed.offset, length: compressed.length, times: table.times)
    result.allocatedClusters &+= table.uses.active
    result.compressedClusters &+= table.uses.active
    result.fragmentedClusters &+= table.uses.active
  }
}
