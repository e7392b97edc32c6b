import BlockCore
import QCOW2Format

/// Changes the persistent bitmaps of an image that is in use; the only writer of the directory.
///
/// A bitmap is never changed where it lies. A new one is made beside it:
///
///     table, followed by requests | bits, directory | the header's sector | frees
///
/// At each `|` the new places are durable. Requests follow the new bitmap, and all requests that began
/// before have ended, before its bits are taken from elsewhere; they follow the old bitmap, too, until
/// the new directory is in force. So each has all bits that it must have whenever it is the one in force:
/// a crash leaves the old directory or the new one, and at worst the clusters of the other leak. A write
/// that begins after ``carryOut(_:)`` has returned is in every bitmap that is then enabled.
///
/// For the holder of ``Image/administration``.
struct BitmapEditor {
  let image: Image
  let tracker: ChangeTracker
  let stored: StoredBitmaps

  private typealias Fill = (TrackedBitmap) async throws(ImageError) -> Void

  init(_ image: Image, _ tracker: ChangeTracker) async throws(ImageError) {
    self.image = image
    self.tracker = tracker
    let editor = image.durability.headerEditor
    await editor.mutex.acquire()
    defer { editor.mutex.release() }
    stored = try await StoredBitmaps.read(tracker.storage)
  }

  private var geometry: ClusterGeometry { image.geometry }
  private var flusher: FlushCoordinator { image.durability.flusher }

  /// Makes the change; when it returns, it is durable.
  ///
  /// - Throws: With nothing changed: ``ImageError/bitmapRefused(_:)``, ``ImageError/noSpace`` and what
  ///   the host says.
  func carryOut(_ change: BitmapChange) async throws(ImageError) {
    switch change {
    case .add(let name, let granularity): try await add(name, granularity)
    case .remove(let name): try await drop([stored.index(of: name)])
    case .removeAll: try await drop(Array(stored.records.indices))
    case .clear(let name):
      try await rebuild(usable(name)) {
        $0
      } fill: { _ in
      }
    case .enable(let name): try await enable(usable(name))
    case .disable(let name): try await disable(usable(name))
    case .merge(let name, let source): try await merge(source, into: usable(name))
    }
  }

  /// The place of a bitmap in the directory whose bits can be trusted.
  private func usable(_ name: String) throws(ImageError) -> Int {
    let index = try stored.index(of: name)
    try requireUsable(index)
    return index
  }

  private func requireUsable(_ index: Int) throws(ImageError) {
    let record = stored.records[index]
    guard !record.entry.flags.contains(.inUse), tracker.sound.contains(record.entry.table.bytes)
    else { throw .bitmapRefused(.inconsistent(record.name)) }
  }

  private func tracked(_ record: BitmapRecord) -> TrackedBitmap? {
    tracker.bitmaps.first { $0.table == record.entry.table }
  }

  // MARK: The changes

  private func add(_ name: String, _ granularity: UInt64?) async throws(ImageError) {
    let bits = try check(name, granularity)
    try await replace(
      nil, name, granularityBits: bits, isTracked: true,
      record: { table, size in
        BitmapRecord(
          BitmapEntry(
            table: table, tableSize: size, flags: .auto, granularityBits: bits,
            nameLength: UInt16(name.utf8.count)), name: name)
      }, fill: { _ in })
  }

  /// Looks whether there may be such a bitmap, in QEMU's order.
  ///
  /// - Returns: log2 of the granularity.
  private func check(_ name: String, _ granularity: UInt64?) throws(ImageError) -> UInt8 {
    func refuse(_ why: BitmapRefusal) -> ImageError { .bitmapRefused(why) }
    if name.isEmpty { throw refuse(.emptyName) }
    let granularity = granularity ?? min(max(geometry.clusterSize, 4096), 65536)
    guard granularity.nonzeroBitCount == 1 else { throw refuse(.granularity) }
    let bits = UInt8(granularity.trailingZeroBitCount)
    guard BitmapEntry.granularityBitsRange.contains(bits) else { throw refuse(.granularity) }
    guard image.header.version >= 3 else { throw refuse(.version2(name)) }
    if (try? stored.index(of: name)) != nil { throw refuse(.exists(name)) }
    guard name.utf8.count <= BitmapEntry.mostNameLength else { throw refuse(.longName) }
    guard stored.records.count < Int(BitmapsExtension.mostBitmaps) else {
      throw refuse(.tooManyBitmaps)
    }
    return bits
  }

  private func enable(_ index: Int) async throws(ImageError) {
    if stored.records[index].entry.flags.contains(.auto) { return }
    try await rebuild(index) {
      $0.union(.auto)
    } fill: { (new) async throws(ImageError) in
      try await self.copy(index, to: new)
    }
  }

  private func disable(_ index: Int) async throws(ImageError) {
    guard stored.records[index].entry.flags.contains(.auto) else { return }
    try await rebuild(index) {
      $0.subtracting(.auto)
    } fill: { (new) async throws(ImageError) in
      try await self.copy(index, to: new)
    }
  }

  private func merge(
    _ source: BitmapChange.BitmapSource, into index: Int
  ) async throws(ImageError) {
    let ranges: DirtyRanges
    switch source {
    case .own(let name): ranges = try await self.ranges(usable(name))
    case .image(let other, let name):
      guard other.size == image.size else {
        throw .bitmapRefused(.sizes(image.size, source: other.size))
      }
      ranges = try await other.dirtyRanges(of: name)
    }
    try await rebuild(index) {
      $0
    } fill: { (new) async throws(ImageError) in
      try await self.copy(index, to: new)
      try await self.add(ranges, to: new)
    }
  }

  /// The bits of a usable bitmap as they are now.
  private func ranges(_ index: Int) async throws(ImageError) -> DirtyRanges {
    let record = stored.records[index]
    if let bitmap = tracked(record) { return DirtyRanges(bitmap, diskSize: image.header.size) }
    return try await DirtyRanges(
      record.entry, tracker.storage, geometry, diskSize: image.header.size)
  }

  private func copy(_ index: Int, to bitmap: TrackedBitmap) async throws(ImageError) {
    try await add(ranges(index), to: bitmap)
  }

  private func add(_ ranges: DirtyRanges, to bitmap: TrackedBitmap) async throws(ImageError) {
    var ranges = ranges
    while let range = try await ranges.next() { bitmap.bits.setExact(bitmap.bits.bits(range)) }
  }

  // MARK: A bitmap in place of another

  private func rebuild(
    _ index: Int, flags: (BitmapEntry.Flags) -> BitmapEntry.Flags, fill: Fill
  ) async throws(ImageError) {
    let old = stored.records[index]
    let flags = flags(old.entry.flags)
    try await replace(
      index, old.name, granularityBits: old.entry.granularityBits,
      isTracked: flags.contains(.auto),
      record: { table, _ in old.with(table: table, flags: flags) },
      fill: fill)
  }

  private func replace(
    _ index: Int?, _ name: String, granularityBits: UInt8, isTracked: Bool,
    record: (HostOffset, UInt32) -> BitmapRecord, fill: Fill
  ) async throws(ImageError) {
    let old = tracker.bitmaps
    let gone = try await places(index.map { [$0] } ?? [])
    let new = try await tracker.build(
      name, granularityBits: granularityBits, diskSize: image.header.size, geometry)
    do throws(ImageError) {
      if isTracked { await image.track(old + [new], tracker) }
      try await fill(new)
      try await tracker.writeOut(new)
      var records = stored.records
      let entry = record(new.table, UInt32(new.entryCount))
      if let index { records[index] = entry } else { records.append(entry) }
      try await commit(records)
    } catch {
      if isTracked { await image.track(old, tracker) }
      forget(new)
      throw error
    }
    tracker.sound.insert(new.table.bytes)
    await finish(index.map { [$0] } ?? [], gone, adding: isTracked ? new : nil)
    if !isTracked { tracker.words.giveBack(new.bits) }
  }

  private func drop(_ indices: [Int]) async throws(ImageError) {
    if indices.isEmpty { return }
    let gone = try await places(indices)
    let dropped = Set(indices)
    try await commit(
      stored.records.enumerated().filter { !dropped.contains($0.offset) }.map(\.element))
    await finish(indices, gone, adding: nil)
  }

  /// What bitmaps that are not tracked leave when they go; nothing of those whose clusters may be
  /// others', too.
  private func places(_ indices: [Int]) async throws(ImageError) -> [ClusterRun] {
    var runs: [ClusterRun] = []
    for index in indices {
      let record = stored.records[index]
      guard tracker.sound.contains(record.entry.table.bytes), tracked(record) == nil else {
        continue
      }
      let table = geometry.hostCluster(of: record.entry.table)
      let length = UInt64(record.entry.tableSize) * 8
      runs.append(
        ClusterRun(start: table, count: geometry.clusters(covering: length), isFresh: false))
      let entries = try await BitmapTable.read(
        record.entry, tracker.storage, fileLength: tracker.storage.length())
      for raw in entries {
        guard let cluster = BitmapTableEntry(raw: raw).cluster else { continue }
        runs.append(
          ClusterRun(start: geometry.hostCluster(of: cluster), count: 1, isFresh: false))
      }
    }
    return runs
  }

  /// Has requests forget bitmaps that no directory has any more, and gives their clusters back.
  private func finish(
    _ indices: [Int], _ gone: [ClusterRun], adding new: TrackedBitmap?
  ) async {
    let records = indices.map { stored.records[$0] }
    let leaving = records.compactMap(tracked)
    let staying = tracker.bitmaps.filter { bitmap in
      bitmap.table != new?.table && !leaving.contains { $0 === bitmap }
    }
    await image.track(staying + (new.map { [$0] } ?? []), tracker)
    for bitmap in leaving { forget(bitmap) }
    for record in records { tracker.sound.remove(record.entry.table.bytes) }
    tracker.giveUp(gone + stored.directory(geometry))
    image.durability.noteDirty()
  }

  private func forget(_ bitmap: TrackedBitmap) {
    tracker.giveUp(tracker.places(of: bitmap))
    tracker.words.giveBack(bitmap.bits)
    image.durability.noteDirty()
  }

  // MARK: The directory

  /// Puts another directory in force; whatever its entries point at becomes durable before.
  private func commit(_ records: [BitmapRecord]) async throws(ImageError) {
    let bytes = records.flatMap(\.encoded)
    guard UInt64(bytes.count) <= BitmapsExtension.mostDirectoryLength else {
      throw .bitmapRefused(.directoryFull)
    }
    if records.isEmpty {
      try await flusher.flush()
      return try await image.durability.headerEditor.setBitmaps(nil, geometry)
    }
    let run = try await tracker.reserveTable(geometry.clusters(covering: UInt64(bytes.count)))
    let target = BitmapsExtension(
      count: UInt32(records.count), directory: geometry.start(of: run.start),
      directoryLength: UInt64(bytes.count))
    do throws(ImageError) {
      try await write(bytes, target.directory)
      try await flusher.flush()
      try await image.durability.headerEditor.setBitmaps(target, geometry)
    } catch {
      tracker.giveUp([run])
      throw error
    }
  }

  private func write(_ bytes: [UInt8], _ directory: HostOffset) async throws(ImageError) {
    let length = geometry.clusters(covering: UInt64(bytes.count)) * geometry.clusterSize
    let buffer = IOBuffer(count: Int(length))
    buffer.withMutableBytes { target in
      for (index, byte) in bytes.enumerated() { target[index] = byte }
    }
    try await tracker.storage.write(from: buffer, at: directory)
  }
}

extension Image {
  /// Makes one change of the persistent bitmaps, while requests go on; see ``BitmapEditor``.
  ///
  /// - Throws: With nothing changed: ``ImageError/bitmapRefused(_:)``, ``ImageError/readOnly``,
  ///   ``ImageError/noSpace``, and what the host says.
  package func changeBitmaps(_ change: BitmapChange) async throws(ImageError) {
    try await administer { (_) async throws(ImageError) in
      guard let tracker = self.changes else { throw .readOnly }
      try await BitmapEditor(self, tracker).carryOut(change)
    }
  }

  /// The bits of a bitmap as they are now; the caller sees to it that nobody changes bitmaps meanwhile.
  ///
  /// - Throws: ``ImageError/bitmapRefused(_:)`` if there is no such bitmap, or it cannot be trusted.
  package func dirtyRanges(of name: String) async throws(ImageError) -> DirtyRanges {
    let stored = try await StoredBitmaps.read(reader.storage)
    let record = stored.records[try stored.index(of: name)]
    if record.entry.flags.contains(.inUse) { throw .bitmapRefused(.inconsistent(name)) }
    if let bitmap = changes?.bitmaps.first(where: { $0.table == record.entry.table }) {
      return DirtyRanges(bitmap, diskSize: header.size)
    }
    do throws(FormatError) { try record.entry.validate(geometry, diskSize: header.size) } catch {
      throw .bitmapRefused(.damaged(.format(error)))
    }
    return try await DirtyRanges(record.entry, reader.storage, geometry, diskSize: header.size)
  }

  /// Has requests follow these bitmaps; when it returns, no request in flight knows only those from
  /// before.
  func track(_ bitmaps: [TrackedBitmap], _ tracker: ChangeTracker) async {
    let old = unsafe await tracker.replace(with: bitmaps)
    gate.setTracking(!bitmaps.isEmpty)
    // A task that is cancelled leaves the set: a request may still look at it.
    do { try await quiesce() } catch { return }
    unsafe TrackedSet.free(old)
  }
}
