package import BlockCore
import QCOW2Format

/// What `open` has gathered, ready to be made into an ``Image``.
struct ImageParts {
  let header: Header
  let options: ImageOptions
  let sources: ImageSources
  let storage: ImageStorage
  let memory: MetadataMemory
  let arenaRecords: ArenaRecords
  let guestData: GuestData
  let l1: DiskTable
  let l2: SliceCache
  let allocator: ClusterAllocator
  let metadata: MetadataMap
  let frees: DeferredFrees
  let headerEditor: HeaderEditor
  var bitmaps: [TrackedBitmap] = []
  /// Where the bits of bitmaps lie; nil if the image is only read.
  var bitmapWords: BitmapWords?
  /// Where the tables of bitmaps start whose clusters are known to be theirs alone.
  var soundBitmaps: Set<UInt64> = []
  var bitmapReport = BitmapReport()

  /// Refcounts may stay in memory while the DIRTY bit is set.
  var hasLazyRefcounts: Bool {
    header.version >= 3 && header.compatible.contains(.lazyRefcounts) && !options.readOnly
  }
}

extension Image {
  /// Opens an image that is one file.
  package static func open(
    _ file: any HostFile, options: ImageOptions
  ) async throws(ImageError) -> Image {
    try await open(ImageSources(file: file), options: options)
  }

  /// Opens the image in `sources`, whose files must be locked by the caller.
  ///
  /// Everything is checked before anything is allocated or written. A writable open clears those
  /// autoclear bits, durably, whose promise is not kept.
  ///
  /// - Throws: ``ImageError/format(_:)``, ``ImageError/damaged(_:)``,
  ///   ``ImageError/cutBeforeTable(_:)`` or ``ImageError/missing(_:)``, with the file untouched.
  package static func open(
    _ sources: ImageSources, options wanted: ImageOptions
  ) async throws(ImageError) -> Image {
    var options = wanted
    if wanted.snapshot != nil { options.readOnly = true }
    let storage = ImageStorage(
      file: sources.file, health: ImageHealth(reporter: options.reporter))
    var head = try await HeaderCluster.read(sources.file)
    let length = head.fileLength
    try requireSupported(head.header, sources, options)
    try requireUsable(head.header, fileLength: length, forWriting: !options.readOnly)
    let snapshots = try await SnapshotTable.read(head.header, storage, options)
    head.header = try snapshots.select(options.snapshot, in: head.header)
    let header = head.header
    let memory = try MetadataMemory()
    let l1 = try await readTable(
      .l1Table, memory, storage, at: header.l1TableOffset, count: Int(header.l1Size),
      fileLength: length)
    // A reader needs no refcounts, so it does not matter whether they are there.
    let refcountTable = try await readTable(
      .refcountTable, memory, storage, at: header.refcountTableOffset,
      count: options.readOnly
        ? 0 : Int(header.refcountTableClusters) << Int(header.clusterBits) / 8,
      fileLength: length)
    if options.readOnly { markDamage(in: l1, header.geometry, fileLength: length) }
    let metadata = try survey(
      head, l1, refcountTable, snapshots, fileLength: length, forWriting: !options.readOnly)
    var parts = try assemble(
      header, options, sources, storage, l1: l1, refcountTable: refcountTable, metadata: metadata,
      fileLength: length)
    if !options.readOnly { try await settleAutoclear(&parts, head, fileLength: length) }
    return Image(parts)
  }

  /// Loads the bitmaps that are to be tracked; clears, durably, the autoclear bits of all that will
  /// not be kept up to date.
  private static func settleAutoclear(
    _ parts: inout ImageParts, _ head: HeaderCluster, fileLength: UInt64
  ) async throws(ImageError) {
    var loader = BitmapLoader(parts, head, fileLength: fileLength)
    let bitmaps = try await loader.load()
    if let problem = bitmaps.problem, parts.options.requiresBitmaps {
      throw .bitmapRefused(.damaged(problem))
    }
    parts.bitmaps = bitmaps.tracked
    parts.bitmapWords = loader.words
    parts.soundBitmaps = bitmaps.sound
    parts.bitmapReport = bitmaps.report
    let kept = parts.header.autoclearToKeep(keepsBitmaps: bitmaps.isConsistent)
    if parts.header.autoclear == kept { return }
    try await parts.headerEditor.clearAutoclear(keeping: kept)
  }

  /// Throws if the header allows nothing to be read or, for a writer, to be written.
  private static func requireUsable(
    _ header: Header, fileLength: UInt64, forWriting: Bool
  ) throws(ImageError) {
    if let problem = header.problemForReading(fileLength: fileLength) {
      throw header.isCutInL1(fileLength: fileLength) ? .cutBeforeTable(problem) : .format(problem)
    }
    guard forWriting, let problem = header.problemForWriting(fileLength: fileLength) else { return }
    throw .damaged(problem)
  }

  /// Makes L1 entries unusable that lie, or lead, beyond the end of the file: requests that need
  /// them fail, and all others are served.
  private static func markDamage(
    in l1: DiskTable, _ geometry: ClusterGeometry, fileLength: UInt64
  ) {
    for index in 0..<l1.count {
      let isMissing = l1.offset.bytes + UInt64(index + 1) * 8 > fileLength
      let entry = isMissing ? .unallocated : L1Entry(raw: l1.load(index))
      if isMissing || entry.leadsBeyond(fileLength) { l1.poison(entry.unusable.raw, at: index) }
    }
  }

  private static func requireSupported(
    _ header: Header, _ sources: ImageSources, _ options: ImageOptions
  ) throws(ImageError) {
    // A name of no length is no backing file, as in QEMU.
    if header.backingFileOffset != 0 && header.backingFileSize != 0 && sources.backing == nil {
      throw .missing(.backingFile)
    }
    if header.cryptMethod != 0 && sources.cipher == nil { throw .missing(.cipher) }
    if header.incompatible.contains(.externalDataFile) && sources.dataFile == nil {
      throw .missing(.dataFile)
    }
    if options.readOnly { return }
    if header.incompatible.contains(.corrupt) { throw .markedCorrupt }
    if header.incompatible.contains(.dirty) { throw .markedDirty }
  }

  private static func readTable(
    _ kind: MetadataKind, _ memory: MetadataMemory, _ storage: ImageStorage, at offset: UInt64,
    count: Int, fileLength: UInt64
  ) async throws(ImageError) -> DiskTable {
    let buffer = try IOBuffer.ofTable((count * 8 + 511) & ~511)
    defer { withExtendedLifetime(buffer) {} }
    if count > 0, offset < fileLength {
      try await storage.read(into: buffer, at: HostOffset(offset))
    }
    return try unsafe DiskTable(
      offset: HostOffset(offset),
      bytes: UnsafeRawBufferPointer(start: buffer.base, count: buffer.count), count: count,
      in: memory, kind)
  }

  private static func assemble(
    _ header: Header, _ options: ImageOptions, _ sources: ImageSources, _ storage: ImageStorage,
    l1: DiskTable, refcountTable: DiskTable, metadata: MetadataMap, fileLength: UInt64
  ) throws(ImageError) -> ImageParts {
    let geometry = header.geometry
    let sliceSize = Int(min(geometry.clusterSize, 4096))
    let memory = l1.memory
    let refcounts = try RefcountStore(
      geometry: geometry, table: refcountTable,
      cache: SliceCache(
        .refcounts, sliceSize: sliceSize, slots: refcountSlots(options, sliceSize), in: memory))
    let frees = DeferredFrees()
    let editor = HeaderEditor(storage: storage, header: header)
    let allocator = ClusterAllocator(
      refcounts: refcounts, storage: storage, metadata: metadata, headerEditor: editor,
      frees: frees, tables: tablesInPlace(header), fileLength: fileLength,
      clears: options.discardsToHost)
    return try ImageParts(
      header: header, options: options, sources: sources, storage: storage, memory: memory,
      arenaRecords: ArenaRecords(
        workers: options.workers + JobSlots.count, in: memory),
      guestData: guestData(header, sources, storage), l1: l1,
      l2: SliceCache(
        .l2, sliceSize: sliceSize, slots: l2Slots(header, options, sliceSize), in: memory),
      allocator: allocator, metadata: metadata, frees: frees, headerEditor: editor)
  }

  /// The bytes of the tables that change in place, without those that the header has none of.
  private static func tablesInPlace(_ header: Header) -> [Range<UInt64>] {
    let l1 = UInt64(header.l1Size) * 8
    let refcounts = UInt64(header.refcountTableClusters) << UInt64(header.clusterBits)
    return [(header.l1TableOffset, l1), (header.refcountTableOffset, refcounts)].filter { $0.1 > 0 }
      .map { $0.0..<($0.0 + $0.1) }
  }

  private static func guestData(
    _ header: Header, _ sources: ImageSources, _ storage: ImageStorage
  ) -> GuestData {
    let external = header.incompatible.contains(.externalDataFile) ? sources.dataFile : nil
    return GuestData(
      storage: external.map {
        ImageStorage(file: $0, health: storage.health, isDataFile: true)
      } ?? storage,
      cipher: header.cryptMethod == 0 ? nil : sources.cipher, isExternal: external != nil,
      // What is enciphered is no raw image of the disk, whatever the header says.
      isRaw: external != nil && header.cryptMethod == 0
        && header.autoclear.contains(.rawExternalData))
  }

  /// Slots for every L2 slice of the disk, up to the budget; more would never be used.
  ///
  /// Slots that are not used take no memory, so a small disk has them, too: it may grow. A cache
  /// for all slices has a quarter more slots than slices, since no stripe gets exactly its share of
  /// them.
  static func l2Slots(
    _ header: Header, _ options: ImageOptions, _ sliceSize: Int
  ) -> Int {
    let tables = Int(clamping: UInt64(header.l1Size) << UInt64(header.geometry.clusterBits))
    let budget = options.cacheBytes ?? ImageOptions.standardCacheBytes
    if tables > budget { return max(budget / sliceSize, 1) }
    let slices = max(min(budget, max(tables, ImageOptions.standardCacheBytes)) / sliceSize, 1)
    return slices + slices / 4
  }

  private static func refcountSlots(_ options: ImageOptions, _ sliceSize: Int) -> Int {
    let bytes = min((options.cacheBytes ?? .max) / 4, 4 << 20)
    return max(bytes / sliceSize, 1)
  }
}
