import BlockCore
import QCOW2Format

/// The persistent bitmaps of a disk that gets another size.
///
/// Their tables must fit the virtual size, so both change by the same write of the header's first sector. New
/// tables and a new directory that leads to them are written before, where nothing points yet. Bits for what
/// is added are zeros: nothing there has changed since anybody's backup. Bitmaps that are marked in use, which
/// nobody trusts, stay as they are.
///
/// For the time when the gate is shut, with the tracker's mutex held from ``init(_:to:)`` on.
struct BitmapResize {
  /// What is new of one bitmap.
  private struct Change {
    let item: BitmapDirectory.Item
    let oldEntries: [UInt64]
    var entries: [UInt64]
    /// Where the new table lies; nil if the old one will do.
    var table: ClusterRun?
    /// New clusters of bits.
    var clusters: [ClusterRun] = []

    var tableOffset: HostOffset { item.entry.table }
  }

  private let image: Image
  private let size: UInt64
  private let oldSize: UInt64
  private let location: BitmapsExtension
  private var changes: [Change] = []
  /// The directory's new place; nil if the old one will do.
  private var directory: ClusterRun?
  private var tracked: [TrackedBitmap] = []

  private var geometry: ClusterGeometry { image.geometry }
  private var storage: ImageStorage { image.reader.storage }
  private var allocator: ClusterAllocator { image.supply.allocator }
  private var bitsPerCluster: UInt64 { geometry.clusterSize * 8 }

  /// Writes all that is new; refcounts and bytes are durable after the caller's next round.
  ///
  /// - Throws: With nothing that matters changed; what was reserved is given back.
  init?(_ image: Image, to size: UInt64) async throws(ImageError) {
    guard image.header.autoclear.contains(.bitmaps) else { return nil }
    self.image = image
    self.size = size
    oldSize = image.size
    let head = try await HeaderCluster.read(image.reader.storage.file)
    guard head.hasOne(.bitmaps), case .success(let location) = head.bitmaps else {
      throw .cannotResize(to: size, .bitmaps)
    }
    self.location = location
    try await image.changes?.settle()
    do throws(ImageError) { try await prepare() } catch {
      await giveUp()
      throw error
    }
  }

  private mutating func prepare() async throws(ImageError) {
    let bytes = IOBuffer(count: Int(location.directoryLength))
    try await storage.read(into: bytes, at: location.directory)
    let items: [BitmapDirectory.Item]
    do throws(FormatError) {
      let location = location
      items = try bytes.withBytes { bytes throws(FormatError) in
        try BitmapDirectory(parsing: bytes, location).items
      }
    } catch { throw .format(error) }
    for item in items where !item.entry.flags.contains(.inUse) {
      // What may be others', too, is not freed with an old table.
      guard image.changes?.sound.contains(item.entry.table.bytes) ?? false else {
        throw .cannotResize(to: size, .bitmaps)
      }
      try await prepare(item)
    }
    if changes.contains(where: { $0.table != nil }) { try await writeDirectory(bytes) }
    try await prepareTracked()
  }

  // MARK: One bitmap

  private mutating func prepare(_ item: BitmapDirectory.Item) async throws(ImageError) {
    let needed = item.entry.entriesNeeded(geometry, size)
    guard needed >= 1, needed <= UInt64(BitmapEntry.mostTableEntries),
      needed << UInt64(geometry.clusterBits) <= BitmapEntry.mostBytes
    else { throw .cannotResize(to: size, .bitmaps) }
    let old = try await readTable(item.entry)
    var entries = Array(old.prefix(Int(needed)))
    entries += Array(repeating: 0, count: Int(needed) - entries.count)
    changes.append(Change(item: item, oldEntries: old, entries: entries))
    let index = changes.count - 1
    if size > oldSize { try await clearTail(index) }
    if changes[index].entries != old { try await writeTable(index) }
  }

  private func readTable(_ entry: BitmapEntry) async throws(ImageError) -> [UInt64] {
    let buffer = try IOBuffer.ofTable((Int(entry.tableSize) * 8 + 511) & ~511)
    try await storage.read(into: buffer, at: entry.table)
    return (0..<Int(entry.tableSize)).map { index in buffer.withBytes { $0.be64(index * 8) } }
  }

  /// Makes the bits behind the old end zeros; they lie in the old table's last cluster.
  private mutating func clearTail(_ index: Int) async throws(ImageError) {
    let count = changes[index].item.entry.bitCount(diskSize: oldSize)
    guard count % bitsPerCluster != 0, let last = changes[index].oldEntries.last else { return }
    let entry = BitmapTableEntry(raw: last)
    let position = changes[index].oldEntries.count - 1
    let bits = IOBuffer(count: Int(geometry.clusterSize))
    if let cluster = entry.cluster {
      try await storage.read(into: bits, at: cluster)
      // In place: nobody looks at these bits before the size changes.
      guard Self.clear(bits, from: count % bitsPerCluster) else { return }
      try await storage.write(from: bits, at: cluster)
    } else if entry.isAllOnes {
      let run = try await allocator.reserveContiguous(1)
      changes[index].clusters.append(run)
      bits.withMutableBytes { for byte in 0..<$0.count { $0[byte] = 0xff } }
      _ = Self.clear(bits, from: count % bitsPerCluster)
      let place = geometry.start(of: run.start)
      try await storage.write(from: bits, at: place)
      changes[index].entries[position] = place.bytes
    }
  }

  /// Clears the bits from `first` on.
  ///
  /// - Returns: Whether any was set.
  private static func clear(_ bits: IOBuffer, from first: UInt64) -> Bool {
    bits.withMutableBytes { bytes in
      var isChanged = false
      for index in Int(first / 8)..<bytes.count {
        let kept: UInt8 = index == Int(first / 8) ? (1 << UInt8(first % 8)) &- 1 : 0
        if bytes[index] & ~kept != 0 { isChanged = true }
        bytes[index] &= kept
      }
      return isChanged
    }
  }

  private mutating func writeTable(_ index: Int) async throws(ImageError) {
    let entries = changes[index].entries
    let clusters = geometry.clusters(covering: UInt64(entries.count) * 8)
    let run = try await allocator.reserveContiguous(clusters)
    changes[index].table = run
    let buffer = try IOBuffer.ofTable(Int(clusters << UInt64(geometry.clusterBits)))
    buffer.withMutableBytes { bytes in
      for (number, raw) in entries.enumerated() { bytes.storeBE(raw, number * 8) }
    }
    try await storage.write(from: buffer, at: geometry.start(of: run.start))
  }

  private mutating func writeDirectory(_ old: IOBuffer) async throws(ImageError) {
    let clusters = geometry.clusters(covering: location.directoryLength)
    let run = try await allocator.reserveContiguous(clusters)
    directory = run
    let bytes = old.withBytes { $0.copy(0..<$0.count) }
    let buffer = IOBuffer(
      starting: bytes, count: Int(clusters << UInt64(geometry.clusterBits)))
    buffer.withMutableBytes { bytes in
      for change in changes {
        guard let table = change.table else { continue }
        BitmapEntry.setTable(
          in: &bytes, at: Int(change.item.position),
          geometry.start(of: table.start), size: UInt32(change.entries.count))
      }
    }
    try await storage.write(from: buffer, at: geometry.start(of: run.start))
  }

  // MARK: What follows every change

  /// The bitmaps that are tracked, with bits for the new size.
  private mutating func prepareTracked() async throws(ImageError) {
    guard let tracker = image.changes else { return }
    for old in tracker.bitmaps {
      guard let change = changes.first(where: { $0.tableOffset == old.table }) else {
        throw .cannotResize(to: size, .bitmaps)
      }
      let table = change.table.map { geometry.start(of: $0.start) } ?? old.table
      let entry = change.item.entry
      let bits = try tracker.words.bits(
        count: entry.bitCount(diskSize: size), granularityBits: entry.granularityBits,
        table: table)
      let bitmap = TrackedBitmap(
        name: old.name, bits: bits,
        entry: BitmapEntry(
          table: table, tableSize: UInt32(change.entries.count), flags: entry.flags,
          granularityBits: entry.granularityBits, nameLength: entry.nameLength),
        entries: change.entries, geometry: geometry)
      try await bitmap.loadBits(storage)
      tracked.append(bitmap)
    }
  }

  // MARK: The end

  /// Brings the new size into force, durably, and the bitmaps with it.
  ///
  /// - Throws: ``ImageError/headerFull`` with nothing changed; after any other error the old or the new
  ///   header is in force, and nothing is given back.
  func commit() async throws(ImageError) {
    guard let directory else {
      try await image.durability.headerEditor.setSize(size)
      return
    }
    do throws(ImageError) {
      try await image.durability.headerEditor.commit(
        .size(size), replacing: .bitmaps,
        with: location.encoded(directory: geometry.start(of: directory.start)),
        clusterSize: Int(geometry.clusterSize))
    } catch {
      if case .headerFull = error { await giveUp() }
      throw error
    }
  }

  /// After ``commit()``: the tracker goes on with the new tables, and the old ones are freed.
  func finish() {
    if let tracker = image.changes {
      let old = tracker.bitmaps
      tracker.replaceHeld(with: tracked)
      for bitmap in old { tracker.words.giveBack(bitmap.bits) }
    }
    var freed: [ClusterRun] = []
    if let directory {
      protect(directory)
      freed.append(run(location.directory, location.directoryLength))
    }
    for change in changes {
      guard let table = change.table else { continue }
      protect(table)
      change.clusters.forEach(protect)
      image.changes?.sound.remove(change.tableOffset.bytes)
      image.changes?.sound.insert(geometry.start(of: table.start).bytes)
      freed.append(run(change.tableOffset, UInt64(change.oldEntries.count) * 8))
      for raw in change.oldEntries.dropFirst(change.entries.count) {
        guard let cluster = BitmapTableEntry(raw: raw).cluster else { continue }
        freed.append(run(cluster, geometry.clusterSize))
      }
    }
    for run in freed {
      for cluster in run.start..<run.end { image.supply.metadata.tables.remove(cluster) }
    }
    image.supply.frees.add(freed)
    image.durability.noteDirty()
  }

  private func run(_ offset: HostOffset, _ length: UInt64) -> ClusterRun {
    ClusterRun(
      start: geometry.hostCluster(of: offset), count: geometry.clusters(covering: length),
      isFresh: false)
  }

  private func protect(_ run: ClusterRun) {
    for cluster in run.start..<run.end { image.supply.metadata.tables.insert(cluster) }
  }

  /// After ``finish()``: bits behind the new end of a disk that became smaller become zeros.
  ///
  /// Nobody looks at them, and growth clears them, too: a failure is of no matter here.
  func clearCut() async {
    guard size < oldSize else { return }
    for change in changes {
      let count = change.item.entry.bitCount(diskSize: size)
      guard count % bitsPerCluster != 0, let last = change.entries.last,
        let cluster = BitmapTableEntry(raw: last).cluster
      else { continue }
      let bits = IOBuffer(count: Int(geometry.clusterSize))
      guard (try? await storage.read(into: bits, at: cluster)) != nil,
        Self.clear(bits, from: count % bitsPerCluster)
      else { continue }
      try? await storage.write(from: bits, at: cluster)
    }
  }

  /// Gives back what was reserved; nothing points there.
  private func giveUp() async {
    let runs = changes.flatMap { ($0.table.map { [$0] } ?? []) + $0.clusters }
    for run in runs + (directory.map { [$0] } ?? []) { try? await allocator.unreserve(run) }
    for bitmap in tracked { image.changes?.words.giveBack(bitmap.bits) }
  }
}
