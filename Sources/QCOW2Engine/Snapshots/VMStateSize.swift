package import QCOW2Format

extension Image {
  /// The internal snapshot that the image is opened at, and the bytes of its VM state.
  ///
  /// - Throws: ``ImageError/noSuchSnapshot(_:existing:)``; ``ImageError/brokenSnapshot(id:_:)`` for a size
  ///   that its L1 table has no room for: nobody can have written so much.
  package func snapshotWithVMState(
    _ selector: SnapshotSelector
  ) async throws(ImageError) -> (snapshot: Snapshot, size: UInt64) {
    let existing = try await snapshots()
    guard let snapshot = selector.first(in: existing) else {
      throw .noSuchSnapshot(selector, existing: existing)
    }
    let entry = snapshot.entry
    let first = geometry.l1EntriesNeeded(forSize: entry.diskSize ?? header.size)
    let tables = UInt64(entry.l1Size) - min(first, UInt64(entry.l1Size))
    let room = tables * geometry.bytesPerL2Table
    if entry.vmStateSize > room {
      throw .brokenSnapshot(
        id: snapshot.id,
        .badField(
          name: "size of the VM state", found: entry.vmStateSize,
          allowed: "at most \(room), which the L1 table of the snapshot has entries for"))
    }
    return (snapshot, entry.vmStateSize)
  }
}
