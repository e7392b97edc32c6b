import BlockCore
import QCOW2Format

// Growth of the refcount structures, on behalf of a reservation.

extension ClusterAllocator {
  /// Makes sure that a refcount block covers `cluster`; call with `mutex` held.
  ///
  /// A new block describes itself: it takes the first cluster that it covers, all of which were
  /// free. The table entry is written after the block, by the flush order. A table that does not reach
  /// there grows first, once: clusters from `cluster` on may be taken then, for the table itself.
  func ensureBlock(for cluster: HostCluster) async throws(ImageError) {
    mutex.assertHeld()
    let index = refcounts.tableIndex(of: cluster)
    if index >= UInt64(refcounts.table.count) { try await growTable(toCover: index) }
    if try refcounts.sliceKey(of: cluster) == nil { try await addBlock(index) }
  }

  /// Makes the refcount block for an entry of the table that has none.
  private func addBlock(_ index: UInt64) async throws(ImageError) {
    let table = refcounts.table
    // A table that did not grow as far as it was asked to is a bug; better no space than a wild store.
    guard index < UInt64(table.count) else { throw .noSpace }
    let block = geometry.clusters(ofRefcountBlock: index).lowerBound
    if let limit, block >= limit { throw .noSpace }
    if let overlap = metadata.firstOverlap(block..<(block + 1)) {
      throw .overlapsMetadata(cluster: overlap)
    }
    let offset = geometry.start(of: block)
    frees.watch.noteNew(block..<(block + 1))
    // Longer now, under the mutex: no write of a flush round may extend the file while an arena's
    // change of length runs [ORD-22]. And with storage: the write-back of refcounts must find room.
    if block >= freshFrom && freshFrom != .max { freshFrom = block + 1 }
    try await storage.allocateZeroes(at: offset, length: geometry.clusterSize)
    room.storedBlocks.insert(index)
    guard refcounts.cache.drop(from: offset, length: geometry.clusterSize) else {
      throw .overlapsMetadata(cluster: block)
    }
    // The block counts itself before the table points at it: a round that falls in between must
    // not find an entry for a block that is not there, or that looks free.
    let order = geometry.refcountOrder
    try await refcounts.cache.withSlice(offset, storage: storage, makeRoom: makeRoom) {
      $0.setRefcount(0, order: order, to: 1)
    }
    metadata.tables.insert(block)
    table.store(RefcountTableEntry(block: offset).raw, at: Int(index))
  }

  /// Moves the refcount table to a larger place; call with `mutex` held.
  ///
  /// The new table and the blocks that count it go where no block reached before, so nothing in use
  /// is touched. They are durable before the header points at them; the old table is released once
  /// the header is durable. A crash before that leaves the old table in force.
  func growTable(toCover index: UInt64) async throws(ImageError) {
    mutex.assertHeld()
    // Entries dirty in the old table must not be lost with it.
    try await makeRoom()
    let old = refcounts.table
    let plan: RefcountPlan
    do throws(RefcountPlan.TableTooLong) {
      plan = try RefcountPlan(growing: UInt64(old.count), toCover: index, geometry)
    } catch { throw .noSpace }
    let place = plan.clusters
    if let limit, place.upperBound > limit { throw .noSpace }
    if let overlap = metadata.firstOverlap(place) { throw .overlapsMetadata(cluster: overlap) }
    // All that can fail comes before the header: nobody changes the old table meanwhile.
    let larger = try plan.table(growing: old)
    frees.watch.noteNew(place)
    // What is written, whole or in part, no longer reads as zeros, whether the table comes to be or not.
    if freshFrom != .max { freshFrom = max(freshFrom, place.upperBound) }
    try await headerEditor.commit(plan.headerPatch, after: .sync) { () async throws(ImageError) in
      try await plan.write(growing: old, to: self.storage)
    }
    for block in plan.blocks { metadata.tables.insert(block) }
    room.storedBlocks.formUnion(plan.numbers)
    metadata.moveRefcountTable(to: plan.table)
    let oldStart = geometry.hostCluster(of: old.offset)
    let oldClusters = geometry.clusters(covering: UInt64(old.count) * 8)
    refcounts.replaceTable(larger)
    frees.add([ClusterRun(start: oldStart, count: oldClusters, isFresh: false)])
  }
}
