import BlockCore
import QCOW2Format

extension Image {
  /// The most entries that an L1 table may have.
  static var mostL1Entries: UInt64 { FormatLimit.l1Bytes / 8 }

  /// Makes the L1 table at least `needed` entries long; call inside ``exclusively(_:)``.
  ///
  /// The larger table goes to new, contiguous clusters. Their refcounts and the table itself are
  /// durable before the header points at it, in one sector write; the old table is released after
  /// that. A crash leaves one of the two tables in force and at worst the other one's clusters
  /// leaked.
  ///
  /// - Throws: ``ImageError/badRequest`` if `needed` is more than an L1 table may have.
  func growL1(to needed: UInt64) async throws(ImageError) {
    let old = mapping.tables.l1.table
    if needed <= UInt64(old.count) { return }
    guard needed <= Self.mostL1Entries else { throw .badRequest }
    let bytes = try Self.bytes(of: old, entries: needed, geometry)
    try await exchangeL1(for: bytes, entries: needed)
  }

  /// Makes another L1 table the one in force, together with other fields of the header; call inside
  /// ``exclusively(_:)``, which has written back all that was dirty in the old one.
  ///
  /// - Parameters:
  ///   - bytes: The table in whole clusters.
  ///   - needed: The number of entries, at least 1 and not less than the old table has.
  ///   - patches: What else of the header changes in the same sector write.
  /// - Throws: With the old table in force, unless the header has the new one.
  func exchangeL1(
    for bytes: IOBuffer, entries needed: UInt64, and patches: [HeaderPatch] = []
  ) async throws(ImageError) {
    let old = mapping.tables.l1.table
    let oldRun = ClusterRun(
      start: geometry.hostCluster(of: old.offset),
      count: geometry.clusters(covering: UInt64(old.count) * 8), isFresh: false)
    if oldRun.count > 0 {
      for cluster in oldRun.start..<oldRun.end { try await supply.allocator.requireInUse(cluster) }
    }
    let run = try await supply.allocator.reserveContiguous(geometry.clusters(covering: needed * 8))
    let offset = geometry.start(of: run.start)
    let table: DiskTable
    defer { withExtendedLifetime(bytes) {} }
    do {
      table = try unsafe DiskTable(
        offset: offset, bytes: UnsafeRawBufferPointer(start: bytes.base, count: bytes.count),
        count: Int(needed), in: old.memory, .l1Table)
    } catch {
      try? await supply.allocator.unreserve(run)
      throw error
    }
    // Nothing is dirty in the old table: what the round writes is refcounts, and its last barrier
    // covers the table, too.
    try await durability.headerEditor.commit(
      .several([.l1Table(offset, entries: UInt32(needed))] + patches),
      after: .round(durability.flusher)
    ) { () async throws(ImageError) in
      try await self.reader.storage.write(from: bytes, at: offset)
    } undo: {
      try? await self.supply.allocator.unreserve(run)
    }
    assert(!admission.gate.isOpen, "the L1 table is replaced under requests")
    mapping.tables.l1.replace(with: table)
    supply.metadata.moveL1Table(to: run.start..<run.end)
    supply.frees.add(oldRun.count > 0 ? [oldRun] : [])
    durability.noteDirty()
  }

  /// The table in whole clusters, zeros behind the entries there are.
  private static func bytes(
    of old: DiskTable, entries: UInt64, _ geometry: ClusterGeometry
  ) throws(ImageError) -> IOBuffer {
    let clusters = geometry.clusters(covering: entries * 8)
    let buffer = try IOBuffer.ofTable(Int(clusters << UInt64(geometry.clusterBits)))
    for index in 0..<old.count { unsafe buffer.base.storeBE64(old.load(index), index * 8) }
    return buffer
  }
}
