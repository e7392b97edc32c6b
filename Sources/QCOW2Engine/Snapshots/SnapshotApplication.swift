import BlockCore
package import QCOW2Format
import Synchronization

extension Image {
  /// Makes the disk what an internal snapshot has; what it had is gone.
  ///
  /// The snapshot stays.
  ///
  ///     references are raised | new L1 | header: L1 and size | what the old L1 led to is given up
  ///
  /// Offline: nobody else uses the image, and guests would see another disk. A crash leaves the old
  /// disk or the snapshot's, and at worst clusters leak. The refcount of what both trees have never
  /// falls to 1, so COPIED is right at any moment. Persistent bitmaps that are kept get all bits set
  /// before the disk changes: everything may have.
  ///
  /// - Parameters:
  ///   - selector: Which one; of several the first.
  ///   - isWanted: Called after each L2 table; not asked any more once the header is written.
  /// - Returns: The snapshot; nil if it was not wanted any more, with the disk unchanged.
  /// - Throws: ``ImageError/noSuchSnapshot(_:existing:)``,
  ///   ``ImageError/snapshotSizeWithBitmaps(found:wanted:)``, ``ImageError/brokenSnapshot(id:_:)``,
  ///   ``ImageError/tooManyReferences(cluster:most:)``.
  package func applySnapshot(
    _ selector: SnapshotSelector, _ isWanted: SnapshotProgress
  ) async throws(ImageError) -> Snapshot? {
    try await withSnapshotWork { (_) async throws(ImageError) in
      let existing = try await snapshots()
      guard let snapshot = selector.first(in: existing) else {
        throw .noSuchSnapshot(selector, existing: existing)
      }
      let tree = try await l1Table(of: snapshot)
      let diskSize = snapshot.entry.diskSize ?? header.size
      if diskSize != header.size, header.autoclear.contains(.bitmaps) {
        throw .snapshotSizeWithBitmaps(found: header.size, wanted: diskSize)
      }
      var references = TreeReferences(tree)
      do throws(ImageError) {
        guard try await count(&references, isWanted) else {
          try await lower(TreeReferences(tree, upTo: references.position))
          return nil
        }
      } catch {
        try? await lower(TreeReferences(tree, upTo: references.position))
        throw error
      }
      let place = mapping.tables.l1.table.offset
      let old: [L1Entry]
      do throws(ImageError) {
        if let changes, size > 0 { try await changes.record(GuestOffset(0), size) }
        old = try await replaceL1(with: tree, diskSize: diskSize)
      } catch {
        if header.l1TableOffset == place.bytes { try? await lower(TreeReferences(tree)) }
        throw error
      }
      try await lower(TreeReferences(old))
      try await durability.flusher.flush()
      return snapshot
    }
  }

  /// Lowers the references of a tree that nothing on the host file leads to.
  private func lower(_ references: TreeReferences) async throws(ImageError) {
    var rest = references
    while try await rest.step(.lower(punches: options.discardsToHost), in: self) {}
  }

  /// - Returns: The entries of the L1 table that was in force, without COPIED.
  private func replaceL1(
    with tree: [L1Entry], diskSize: UInt64
  ) async throws(ImageError) -> [L1Entry] {
    var old: [L1Entry] = []
    try await exclusively { () async throws(ImageError) in
      // A table that is about to be the disk's again may be on its way back from an earlier pointer.
      _ = try await self.supply.returnMature()
      let table = self.mapping.tables.l1.table
      old = (0..<table.count).map { L1Entry(raw: table.load($0)).copied(false) }
      // The table in memory never becomes shorter.
      let count = max(
        self.geometry.l1EntriesNeeded(forSize: diskSize), UInt64(tree.count), UInt64(old.count))
      guard count <= Self.mostL1Entries else { throw .badRequest }
      if count == 0 { return }
      let bytes = try Self.l1Bytes(tree, count: count, self.geometry)
      try await self.exchangeL1(for: bytes, entries: count, and: [.size(diskSize)])
      self.mapping.currentSize.store(diskSize & ~511, ordering: .relaxed)
      let tables = self.supply.metadata.tables
      for table in old.compactMap(\.l2Table) {
        tables.remove(self.geometry.hostCluster(of: table))
      }
      for table in tree.compactMap(\.l2Table) {
        tables.insert(self.geometry.hostCluster(of: table))
      }
    }
    return old
  }
}
