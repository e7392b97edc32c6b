import BlockCore
import QCOW2Format

/// Finds L2 tables through the L1 table, and makes them writable: allocated, and shared with
/// nobody.
final class L2Tables: @unchecked Sendable {  // why: constants and types that guard themselves
  let l1: ActiveL1
  let cache: SliceCache
  /// What COPIED is worth.
  let sharing: Sharing
  let geometry: ClusterGeometry
  let storage: ImageStorage
  let arenas: WorkerArenas
  private let metadata: MetadataMap
  private let frees: DeferredFrees
  /// Tables that are being made writable; the first guest cluster of each stands for it.
  private let inFlight: InFlightRanges

  init(
    l1: ActiveL1, cache: SliceCache, geometry: ClusterGeometry, storage: ImageStorage,
    arenas: WorkerArenas, metadata: MetadataMap, frees: DeferredFrees, sharing: Sharing
  ) {
    self.sharing = sharing
    self.l1 = l1
    self.cache = cache
    self.geometry = geometry
    self.storage = storage
    self.arenas = arenas
    self.metadata = metadata
    self.frees = frees
    inFlight = InFlightRanges(groupBits: geometry.l2Bits)
  }

  /// Where the L1 entry at `index` leads: no table is found in any other way.
  @inline(__always) func place(_ index: Int) -> L2TablePlace {
    L1Entry(raw: l1.load(index)).place(geometry)
  }

  /// The same for those who cannot go on without: throws if the entry breaks the format.
  func usable(_ index: Int) throws(ImageError) -> L2TablePlace {
    let entry = L1Entry(raw: l1.load(index))
    let place = entry.place(geometry)
    if case .unusable = place { try Self.check(entry, index: index, geometry) }
    return place
  }

  /// Throws if the entry breaks the format.
  static func check(
    _ entry: L1Entry, index: Int, _ geometry: ClusterGeometry
  ) throws(ImageError) {
    guard let problem = entry.problem(geometry) else { return }
    throw .format(
      .badEntry(
        name: "L1 entry", index: UInt64(index), value: (entry.beforeUnusable ?? entry).raw,
        problem: problem))
  }

  /// The L2 table for `index`, ready to be changed in place.
  ///
  /// A missing table is allocated and reads as all unallocated; a shared one (not COPIED) is
  /// copied, and its old place loses a reference once the new L1 entry is durable. A crash before
  /// that leaks the new cluster. A table that has become ours again is not copied: see ``Sharing``.
  func writableTable(_ index: Int, worker: Int) async throws(ImageError) -> HostOffset {
    if let table = try writableNow(index) { return table }
    let first = GuestCluster(UInt64(index) << UInt64(geometry.l2Bits))
    let range = first..<(first + 1)
    await inFlight.acquire(range)
    defer { inFlight.release(range) }
    if let table = try writableNow(index) { return table }
    let old = try usable(index).table
    var isShared = false
    if let old {
      let references = try await arenas.allocator.requireInUse(geometry.hostCluster(of: old))
      if references == 1 && sharing.mayRegain, try await settle(old, at: index) { return old }
      isShared = references > 1 || sharing.isCounting
    }
    let run = try await arenas.take(upTo: 1, worker: worker)
    let table = geometry.start(of: run.start)
    do {
      try await initialize(table, from: old, isShared: isShared)
    } catch {
      frees.add([run])
      throw error
    }
    metadata.tables.insert(run.start)
    l1.table.noteStored(index)
    l1.store(L1Entry(l2Table: table, copied: true).raw, at: index)
    if let old {
      let cluster = geometry.hostCluster(of: old)
      metadata.tables.remove(cluster)
      frees.add([ClusterRun(start: cluster, count: 1, isFresh: false)])
    }
    return table
  }

  /// Gives the holes of the L2 table for `index` storage of the host; call before new entries are made
  /// in it.
  ///
  /// A table that was made in this session has none. Others may: a copy of an image can be sparse. Where
  /// the host has no fallocate, holes of an old table stay: then the flush may find no room.
  ///
  /// - Throws: if the host has no room.
  func provideStorage(_ index: Int) async throws(ImageError) {
    if l1.isStored(index) { return }
    guard let table = try usable(index).table else { return }
    try await storage.allocateHoles(at: table, length: geometry.clusterSize)
    l1.table.noteStored(index)
  }

  /// Makes COPIED what the refcounts say in the table for `index`, if the L1 entry has none.
  ///
  /// - Returns: False, with nothing done, if the L1 entry has COPIED, or there is no table.
  func settleShared(_ index: Int) async throws(ImageError) -> Bool {
    let first = GuestCluster(UInt64(index) << UInt64(geometry.l2Bits))
    let range = first..<(first + 1)
    await inFlight.acquire(range)
    defer { inFlight.release(range) }
    guard case .at(let table, isOwn: false) = try usable(index) else { return false }
    _ = try await settle(table, at: index)
    return true
  }

  private func writableNow(_ index: Int) throws(ImageError) -> HostOffset? {
    if case .at(let table, isOwn: true) = try usable(index) { return table }
    return nil
  }

  private func initialize(
    _ table: HostOffset, from old: HostOffset?, isShared: Bool
  ) async throws(ImageError) {
    // Slices left over from an earlier life of this cluster must not be taken for the new table's.
    guard cache.drop(from: table, length: geometry.clusterSize) else {
      throw .overlapsMetadata(cluster: geometry.hostCluster(of: table))
    }
    if let old {
      try await copyTable(from: old, to: table, takesCopied: isShared && !sharing.hasDataFile)
    } else {
      // A fresh cluster reads as zeros already, but may lie beyond the end of the file: nothing may
      // point there (QEMU calls it corrupt), and no slice may be written before a crash. It may be a
      // hole, too: the slices of the table must find room when they are written back.
      try await storage.allocateZeroes(at: table, length: geometry.clusterSize)
      insertZeroes(table)
    }
  }
}

extension L2Tables {
  /// Spares the first comers the reads of a new table's slices, as many as fit beside others'.
  private func insertZeroes(_ table: HostOffset) {
    let size = UInt64(cache.sliceSize)
    let count = min(geometry.clusterSize / size, 16, UInt64(cache.slotCount / 4))
    for number in 0..<count { cache.insertZeroes(table + number * size) }
  }
}
