import BlockCore
import QCOW2Format

// Contiguous host clusters, for tables that the header points at.

extension ClusterAllocator {
  /// Reserves exactly `count` contiguous host clusters with a refcount of 1, or nothing [ALLOC-15].
  ///
  /// In a file they lie in a gap that one slice of refcounts shows, where clusters were given back last, so
  /// that tables which come and go again and again do not make the file longer; or else at the end, for to
  /// look further could mean to read every refcount block. On a block device the first gap that is large
  /// enough is taken.
  ///
  /// - Throws: ``ImageError/noSpace`` if there is no such run and the file cannot grow.
  func reserveContiguous(_ count: UInt64) async throws(ImageError) -> ClusterRun {
    await mutex.acquire()
    defer { mutex.release() }
    try await prepare()
    if let gap = try await takeGap(count) {
      return ClusterRun(start: gap.lowerBound, count: count, isFresh: false)
    }
    let run =
      count < geometry.refcountBlockEntries
      ? try await takeRun(count) : try await takeRunWithBlocks(count)
    return ClusterRun(start: run.lowerBound, count: count, isFresh: false)
  }

  /// Where host clusters end, for good.
  private var end: HostCluster { limit ?? geometry.endOfHostClusters }

  /// Clusters of a file that are free in the slice of refcounts at ``cursor``; nil if it has no such gap.
  private func takeGap(_ count: UInt64) async throws(ImageError) -> Range<HostCluster>? {
    guard limit == nil, cursor < freshFrom, try refcounts.sliceKey(of: cursor) != nil else {
      return nil
    }
    let part = cursor..<min(refcounts.sliceRange(of: cursor).upperBound, freshFrom)
    guard let start = try await firstGap(of: count, in: part) else { return nil }
    let gap = start..<(start + count)
    if metadata.firstOverlap(gap) != nil { return nil }
    try await provideStorage(ofBlockFor: start)
    try await countOnce(gap)
    return gap
  }

  /// The start of the first `count` clusters of `part`, which one slice counts, that have no refcount.
  private func firstGap(
    of count: UInt64, in part: Range<HostCluster>
  ) async throws(ImageError) -> HostCluster? {
    let order = geometry.refcountOrder
    return try await withSlice(of: part.lowerBound) { [refcounts] slice in
      var start = part.lowerBound
      for cluster in part {
        let index = refcounts.indexInSlice(cluster)
        if unsafe RefcountWidth.get(slice.bytes, order: order, index: index) != 0 {
          start = cluster + 1
        } else if start + count == cluster + 1 {
          return start
        }
      }
      return nil
    }
  }

  /// A run that refcount blocks, each in the first cluster that it counts, leave room for.
  private func takeRun(_ count: UInt64) async throws(ImageError) -> Range<HostCluster> {
    var start = limit == nil ? freshFrom : cursor
    // From `start` to here all refcounts are zero.
    var at = start
    while at < start + count {
      guard start + count <= end else { throw .noSpace }
      // A new block, or a larger table, takes clusters from `at` on: they show in what is read
      // next.
      try await ensureBlock(for: at)
      try await provideStorage(ofBlockFor: at)
      let part = at..<min(refcounts.sliceRange(of: at).upperBound, start + count)
      if let used = try await lastUsed(part) {
        start = used + 1
        at = start
      } else {
        at = part.upperBound
      }
    }
    let run = start..<(start + count)
    if let overlap = metadata.firstOverlap(run) { throw .overlapsMetadata(cluster: overlap) }
    try await extendFile(to: run)
    try await countOnce(run)
    return run
  }

  /// The last cluster of `part`, which one slice counts, that has a refcount.
  func lastUsed(_ part: Range<HostCluster>) async throws(ImageError) -> HostCluster? {
    let order = geometry.refcountOrder
    return try await withSlice(of: part.lowerBound) { [refcounts] slice in
      part.last {
        unsafe RefcountWidth.get(slice.bytes, order: order, index: refcounts.indexInSlice($0)) != 0
      }
    }
  }

  private func extendFile(to run: Range<HostCluster>) async throws(ImageError) {
    guard limit == nil else { return }
    freshFrom = max(freshFrom, run.upperBound)
    room.end = max(room.end, freshFrom)
    try await growFile(over: run.upperBound.advanced(by: -1))
  }

  /// Sets refcounts that are zero to one; all of them, or none.
  func countOnce(_ run: Range<HostCluster>) async throws(ImageError) {
    frees.watch.noteNew(run)
    let order = geometry.refcountOrder
    var next = run.lowerBound
    do {
      while next < run.upperBound {
        let part = next..<min(refcounts.sliceRange(of: next).upperBound, run.upperBound)
        try await withSlice(of: next) { [refcounts] slice in
          let first = refcounts.indexInSlice(part.lowerBound)
          slice.setRefcounts(first..<(first + part.count), order: order, to: 1)
        }
        next = part.upperBound
      }
    } catch {
      try? await decrement(run.lowerBound..<next)
      throw error
    }
  }

  /// A run longer than what one refcount block counts, behind new blocks that count it and
  /// themselves; all of it where no block reached before.
  ///
  /// The blocks are written before the table points at them, and past the cache: until then nobody
  /// can look them up. A crash or failure before that leaves bytes in clusters that are free.
  private func takeRunWithBlocks(_ count: UInt64) async throws(ImageError) -> Range<HostCluster> {
    let blocks = RefcountPlan.blocks(counting: count, geometry)
    let first = try await firstBlockIndex(blocks)
    let start = geometry.clusters(ofRefcountBlock: first).lowerBound
    let used = start..<(start + blocks + count)
    guard used.upperBound <= end else { throw .noSpace }
    if let overlap = metadata.firstOverlap(used) { throw .overlapsMetadata(cluster: overlap) }
    frees.watch.noteNew(used)
    try await extendFile(to: used)
    let table = refcounts.table
    for number in 0..<blocks {
      try await writeBlock(first + number, at: start + number, of: used)
    }
    for number in 0..<blocks {
      metadata.tables.insert(start + number)
      room.storedBlocks.insert(first + number)
      table.store(
        RefcountTableEntry(block: geometry.start(of: start + number)).raw,
        at: Int(first + number))
    }
    return (start + blocks)..<used.upperBound
  }

  /// The first index of the refcount table from which on there are no blocks, and room for
  /// `blocks`.
  private func firstBlockIndex(_ blocks: UInt64) async throws(ImageError) -> UInt64 {
    while true {
      let table = refcounts.table
      var first = UInt64(table.count)
      while first > 0 && RefcountTableEntry(raw: table.load(Int(first - 1))).block == nil {
        first -= 1
      }
      if limit == nil {
        let perBlock = geometry.refcountBlockEntries
        first = max(first, (freshFrom.number + perBlock - 1) / perBlock)
      }
      if first + blocks <= UInt64(table.count) { return first }
      guard geometry.clusters(ofRefcountBlock: first + blocks).lowerBound <= end else {
        throw .noSpace
      }
      try await growTable(toCover: first + blocks - 1)
      guard refcounts.table.count > table.count else { throw .noSpace }
    }
  }

  /// Writes the refcount block `number`, which counts the clusters of `used` once.
  private func writeBlock(
    _ number: UInt64, at cluster: HostCluster, of used: Range<HostCluster>
  ) async throws(ImageError) {
    let buffer = IOBuffer(count: Int(geometry.clusterSize))
    unsafe RefcountWidth.countOnce(used, in: buffer.base, number: number, geometry)
    let offset = geometry.start(of: cluster)
    guard refcounts.cache.drop(from: offset, length: geometry.clusterSize) else {
      throw .overlapsMetadata(cluster: cluster)
    }
    try await storage.write(from: buffer, at: offset)
  }
}
