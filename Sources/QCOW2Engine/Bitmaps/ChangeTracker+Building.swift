import BlockCore
import QCOW2Format

// Bitmaps that no directory has yet.

extension ChangeTracker {
  /// A bitmap without bits, whose table is on the host file, not yet durable.
  ///
  /// - Parameters:
  ///   - name: For reports.
  ///   - granularityBits: In the format's limits.
  ///   - diskSize: In bytes.
  ///   - geometry: The image's.
  /// - Returns: The bitmap, which requests do not follow yet.
  /// - Throws: ``ImageError/bitmapRefused(_:)`` if it would be too large; ``ImageError/noSpace``.
  func build(
    _ name: String, granularityBits: UInt8, diskSize: UInt64, _ geometry: ClusterGeometry
  ) async throws(ImageError) -> TrackedBitmap {
    let size = BitmapEntry.tableSize(for: diskSize, granularityBits: granularityBits, geometry)
    guard size <= UInt64(BitmapEntry.mostTableEntries),
      size <= BitmapEntry.mostBytes >> UInt64(geometry.clusterBits)
    else { throw .bitmapRefused(.tooLarge) }
    let granularity: UInt64 = 1 << UInt64(granularityBits)
    let count = diskSize / granularity + (diskSize % granularity == 0 ? 0 : 1)
    let memory = bitmaps.reduce(TrackedBits.memory(count: count)) {
      $0 + TrackedBits.memory(count: $1.bits.count)
    }
    guard memory <= BitmapLoader.mostMemory else {
      throw .bitmapRefused(.tooMuchMemory(bytes: memory))
    }
    let run = try await reserveTable(geometry.clusters(covering: max(size, 1) * 8))
    var made: TrackedBits?
    do throws(ImageError) {
      let table = geometry.start(of: run.start)
      let entry = BitmapEntry(
        table: table, tableSize: UInt32(size), flags: .auto, granularityBits: granularityBits,
        nameLength: 1)
      let bits = try words.bits(count: count, granularityBits: granularityBits, table: table)
      made = bits
      let bitmap = TrackedBitmap(
        name: name, bits: bits, entry: entry,
        entries: [UInt64](repeating: 0, count: Int(size)), geometry: geometry, isNew: true)
      try await bitmap.writeTable(storage)
      return bitmap
    } catch {
      if let made { words.giveBack(made) }
      giveUp([run])
      throw error
    }
  }

  /// Clusters in a row, protected from being written as data.
  func reserveTable(_ count: UInt64) async throws(ImageError) -> ClusterRun {
    let run = try await allocator.reserveContiguous(count)
    for cluster in run.start..<run.end { metadata.tables.insert(cluster) }
    return run
  }

  /// Lets go of clusters that nothing on the host file points at any more, or once what was written
  /// before is durable.
  func giveUp(_ runs: [ClusterRun]) {
    for run in runs {
      for cluster in run.start..<run.end { metadata.tables.remove(cluster) }
    }
    frees.add(runs)
  }

  /// Writes the exact bits of a bitmap that may be tracked already, and its table; not yet durable.
  ///
  /// Holds the mutex for one cluster at a time, so that requests get their turn.
  ///
  /// - Throws: ``ImageError/noSpace`` and what the host says; the bitmap can then be given up.
  func writeOut(_ bitmap: TrackedBitmap) async throws(ImageError) {
    for entry in 0..<bitmap.entryCount {
      let found = bitmap.bits.exactBits(of: bitmap.allBits(entry))
      if found.any { try await writeOut(bitmap, entry) }
    }
    await mutex.acquire()
    defer { mutex.release() }
    try await bitmap.writeTable(storage)
  }

  private func writeOut(_ bitmap: TrackedBitmap, _ entry: Int) async throws(ImageError) {
    await mutex.acquire()
    defer { mutex.release() }
    // Requests may have given it a cluster meanwhile, which lacks the other bits.
    if bitmap.entry(entry).cluster != nil {
      return try await bitmap.rewriteCluster(of: entry, storage)
    }
    if bitmap.bits.exactBits(of: bitmap.allBits(entry)).all {
      return bitmap.flatten(entry, isExact: true)
    }
    // "All ones" for want of space: that is more than enough.
    if bitmap.entry(entry).isAllOnes { return }
    guard let run = try await reserve() else { throw .noSpace }
    do throws(ImageError) {
      try await bitmap.writeCluster(run.start, for: entry, adding: [], storage)
    } catch {
      giveUp([run])
      throw error
    }
    bitmap.link(entry, to: run.start)
  }

  /// The clusters of a bitmap: its table and its bits.
  func places(of bitmap: TrackedBitmap) -> [ClusterRun] {
    let table = ClusterRun(
      start: bitmap.geometry.hostCluster(of: bitmap.table),
      count: bitmap.geometry.clusters(covering: UInt64(max(bitmap.entryCount, 1)) * 8),
      isFresh: false)
    return [table]
      + bitmap.clusters.map { ClusterRun(start: $0, count: 1, isFresh: false) }
  }
}
