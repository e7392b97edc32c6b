import BlockCore
import QCOW2Format
import Synchronization

extension Image {
  /// Lets go of all that the active disk has of its own, so that its backing file shows everywhere.
  ///
  /// For an image whose backing file reads the same, durably: a crash leaves an image that has some of its
  /// tables, reads the same, and has leaked clusters at worst. L1 entries go first, then a round makes
  /// that durable, then the references of tables and clusters are given up. What snapshots share stays
  /// theirs. Persistent bitmaps keep their bits: the guest sees no change.
  ///
  /// - Throws: With some of the tables gone; what they referred to has leaked.
  package func makeEmpty() async throws(ImageError) {
    try await administer { (_) async throws(ImageError) in
      try await self.exclusively { () async throws(ImageError) in
        for index in 0..<self.mapping.tables.l1.count { try await self.dropTable(at: index) }
        try await self.durability.flusher.flush()
        if self.reader.guestData.isExternal {
          await self.reader.guestData.storage.punchHole(at: HostOffset(0), length: self.size)
        }
        // Places that were read before may be used anew from here on.
        self.supply.frees.generation.wrappingAdd(1, ordering: .acquiringAndReleasing)
        _ = try await self.supply.returnMature()
      }
    }
  }

  /// Takes the table away from an L1 entry; no request is in flight, and no slice is dirty.
  private func dropTable(at index: Int) async throws(ImageError) {
    let tables = mapping.tables
    guard let table = try tables.usable(index).table else { return }
    let own = geometry.hostCluster(of: table)
    var clusters = [own]
    for slice in 0..<(geometry.clusterSize / UInt64(mapping.cache.sliceSize)) {
      clusters += try await TreeReferences.clusters(
        table + slice * UInt64(mapping.cache.sliceSize), self)
    }
    tables.l1.store(L1Entry.unallocated.raw, at: index)
    supply.metadata.tables.remove(own)
    supply.frees.add(Self.runs(clusters))
    durability.noteDirty()
  }

  /// Each cluster as often as it is named; in few runs, for one that is named once.
  private static func runs(_ clusters: [HostCluster]) -> [ClusterRun] {
    var runs: [ClusterRun] = []
    for cluster in clusters.sorted() {
      if let last = runs.last, last.end == cluster {
        runs[runs.count - 1].count += 1
      } else {
        runs.append(ClusterRun(start: cluster, count: 1, isFresh: false))
      }
    }
    return runs
  }
}
