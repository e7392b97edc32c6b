import BlockCore
import QCOW2Format

/// The entries of all L1 and L2 tables, mended by ``EntryRepair``, and the COPIED flags of the
/// active disk, set where there is exactly one reference.
struct EntryFixes {
  /// Which COPIED flags to correct.
  enum Flags {
    case all
    /// Only those that are set and must not be: always safe.
    case clearing
    case none
  }

  /// How many entries are, or would be, changed.
  struct Count {
    /// Entries that are mended.
    var entries: UInt64 = 0
    /// COPIED flags.
    var flags: UInt64 = 0

    var isEmpty: Bool { entries == 0 && flags == 0 }
  }

  private let file: any WritableImageBytes
  private let scan: RefcountScan
  private let geometry: ClusterGeometry
  private let head: HeaderCluster
  private let repair: EntryRepair?
  /// Bitmaps of compressed clusters, which nobody reads, are cleared.
  private let clearsBitmaps: Bool
  private let flags: Flags
  private let new: NewRefcounts?

  /// With `mends` entries are mended, and not only their flags corrected; with `clearsBitmaps` compressed
  /// clusters lose subcluster bitmaps, which nobody reads.
  ///
  /// `new` are the refcounts that the image has now; nil if they are where they were.
  init(
    _ file: any WritableImageBytes, _ scan: RefcountScan, mends: Bool, clearsBitmaps: Bool,
    _ flags: Flags, _ new: NewRefcounts? = nil
  ) {
    self.new = new
    self.file = file
    self.scan = scan
    self.flags = flags
    geometry = scan.geometry
    head = scan.check.head
    repair = mends ? EntryRepair(head) : nil
    self.clearsBitmaps = clearsBitmaps && EntryRules(head.header).isExtended
  }

  /// How much ``apply()`` would change.
  func count() throws(ToolError) -> Count { try walk(writes: false) }

  /// Changes the entries.
  func apply() throws(ToolError) -> Count { try walk(writes: true) }

  private func walk(writes: Bool) throws(ToolError) -> Count {
    var count = Count()
    if repair == nil && flags == .none && !clearsBitmaps { return count }
    for table in scan.check.l1Tables { try walkL1(table, writes, &count) }
    let buffer = IOBuffer(count: Int(geometry.clusterSize))
    for (table, uses) in scan.check.l2Tables.sorted(by: { $0.key < $1.key }) {
      try walkL2(table, isActive: uses.active > 0, buffer, writes, &count)
    }
    return count
  }

  private func walkL1(
    _ table: L1Place, _ writes: Bool, _ count: inout Count
  ) throws(ToolError) {
    let perCluster = Int(geometry.clusterSize / 8)
    var done = 0
    while done < table.entries && table.offset.bytes + UInt64(done) * 8 < head.fileLength {
      let part = min(perCluster, table.entries - done)
      let place = table.offset + UInt64(done) * 8
      // A table that is said to be too long may reach into something else.
      let rules = Rules(self, at: place, isActive: table.isActive)
      let buffer = try file.block(at: place, count: part * 8)
      try correct(buffer, count: part, step: 8, at: place, writes, &count) { raw, _, count in
        let old = L1Entry(raw: raw)
        let mended = rules.mends ? repair?.l1(old) : nil
        if mended != nil { count.entries += 1 }
        let entry = mended ?? old
        guard let table = entry.l2Table, let wanted = hasOneReference(table) else {
          return (entry.raw, 0)
        }
        return (entry.copied(rules.flag(entry.isCopied, wanted, &count)).raw, 0)
      }
      done += part
    }
  }

  private func walkL2(
    _ table: HostOffset, isActive: Bool, _ buffer: IOBuffer, _ writes: Bool, _ count: inout Count
  ) throws(ToolError) {
    let rules = Rules(self, at: table, isActive: isActive)
    if !rules.mends && !rules.clearsBitmaps && rules.flags == .none { return }
    try file.read(into: buffer, count: buffer.count, at: table)
    let format = EntryRules(head.header)
    try correct(
      buffer, count: Int(geometry.l2Entries), step: 1 << geometry.l2EntryBits, at: table, writes,
      &count
    ) { raw, second, count in
      let old = L2Entry(raw: raw)
      let bitmap = SubclusterBitmap(raw: format.isExtended ? second : 0)
      let mended = rules.mends ? repair?.l2(old, bitmap: bitmap) : nil
      let entry = mended ?? old
      let isUnread = rules.clearsBitmaps && format.isUnread(bitmap, of: entry)
      if mended != nil || isUnread { count.entries += 1 }
      let second = isUnread ? 0 : second
      guard let wanted = wantedFlag(entry, format) else { return (entry.raw, second) }
      return (entry.copied(rules.flag(entry.isCopied, wanted, &count)).raw, second)
    }
  }

  /// Whether an L2 entry should be COPIED; nil if that is of no matter.
  private func wantedFlag(_ entry: L2Entry, _ format: EntryRules) -> Bool? {
    if entry.kind(hasZeroFlag: format.hasZeroFlag) == .compressed { return false }
    // In a data file, an entry may lead to offset 0, and only the flag tells.
    if format.hasDataFile { return entry.hostCluster != nil || entry.isCopied ? true : nil }
    return entry.hostCluster.flatMap(hasOneReference)
  }

  /// Gives each entry that is not zero the halves that `wanted` makes of it and of what follows it; without
  /// extended entries the second half is nothing.
  private func correct(
    _ buffer: IOBuffer, count entries: Int, step: Int, at place: HostOffset, _ writes: Bool,
    _ count: inout Count, _ wanted: (UInt64, UInt64, inout Count) -> (UInt64, UInt64)
  ) throws(ToolError) {
    var changed: Range<Int>?
    for index in 0..<entries {
      let raw = buffer.be64(index * step)
      guard raw != 0 else { continue }
      let second = step > 8 ? buffer.be64(index * step + 8) : 0
      let new = wanted(raw, second, &count)
      guard new != (raw, second) else { continue }
      buffer.storeBE64(new.0, index * step)
      if step > 8 { buffer.storeBE64(new.1, index * step + 8) }
      changed = (changed?.lowerBound ?? index * step)..<(index * step + step)
    }
    guard writes, let changed else { return }
    let first = changed.lowerBound & ~511
    let length = min((changed.upperBound + 511) & ~511, buffer.count) - first
    let bytes = unsafe UnsafeRawBufferPointer(start: buffer.base + first, count: length)
    try unsafe file.write(bytes, at: place + UInt64(first))
    withExtendedLifetime(buffer) {}
  }

  /// Whether the refcount of a cluster is one in the end; nil if it stays as it is, since it lies beyond
  /// the end of the file.
  private func hasOneReference(_ offset: HostOffset) -> Bool? {
    let cluster = geometry.hostCluster(of: offset)
    if cluster >= scan.fileEnd {
      guard let new else { return nil }
      if !new.covers(cluster) { return false }
    }
    return scan.references(cluster) == 1
  }

  /// What may be done to one table.
  private struct Rules {
    let mends: Bool
    let clearsBitmaps: Bool
    let flags: Flags

    /// For one cluster of a table: where something else lies as well, nothing may be changed that could be the other's.
    init(_ fixes: EntryFixes, at place: HostOffset, isActive: Bool) {
      let cluster = fixes.geometry.hostCluster(of: place)
      let isAlone = fixes.scan.check.references.use(of: cluster) != .conflict
      mends = fixes.repair != nil && isAlone
      clearsBitmaps = fixes.clearsBitmaps && isAlone
      flags = !isActive || fixes.flags == .none ? .none : isAlone ? fixes.flags : .clearing
    }

    /// What a flag becomes that is `isSet` and should be as `wanted`.
    func flag(_ isSet: Bool, _ wanted: Bool, _ count: inout Count) -> Bool {
      guard wanted != isSet, flags == .all || (flags == .clearing && !wanted) else { return isSet }
      count.flags += 1
      return wanted
    }
  }
}
