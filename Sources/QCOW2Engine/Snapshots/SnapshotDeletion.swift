package import QCOW2Format

extension Image {
  /// Deletes an internal snapshot, while guests go on.
  ///
  ///     table without it | header, DIRTY | references are lowered beside the guest, COPIED | DIRTY goes
  ///
  /// A crash leaves the snapshot whole, or it is gone and some of its clusters leak: see
  /// ``RefcountDoubt``. What nothing refers to any more goes back to the host, if discards do.
  ///
  /// - Parameters:
  ///   - selector: Which one; of several the first.
  ///   - isWanted: Asked once, before anything is changed; then called after each L2 table.
  /// - Returns: The snapshot; nil if it was not wanted any more, with nothing changed.
  /// - Throws: ``ImageError/noSuchSnapshot(_:existing:)``; ``ImageError/brokenSnapshot(id:_:)`` with
  ///   nothing changed.
  package func deleteSnapshot(
    _ selector: SnapshotSelector, _ isWanted: SnapshotProgress
  ) async throws(ImageError) -> Snapshot? {
    try await withSnapshotWork { (job) async throws(ImageError) in
      var table = try await SnapshotTableChange(self)
      guard let snapshot = selector.first(in: table.snapshots),
        let index = table.snapshots.firstIndex(of: snapshot)
      else { throw .noSuchSnapshot(selector, existing: table.snapshots) }
      let references = TreeReferences(try await l1Table(of: snapshot))
      guard await isWanted(0, UInt64(2 * references.tables.count)) else { return nil }
      table.edit.remove(at: index)
      let doubt = RefcountDoubt(durability)
      try await doubt.prepare()
      do throws(SnapshotTableFailure) { try await table.commit(with: doubt.beginning) } catch {
        if !error.isInForce { doubt.noteEnd() }
        throw error.error
      }
      try await drop(references, by: job, isWanted)
      if let run = l1Clusters(of: snapshot) {
        for cluster in run.start..<run.end { supply.metadata.tables.remove(cluster) }
        supply.frees.add([run])
      }
      try await doubt.end()
      return snapshot
    }
  }

  /// Lowers the references of a snapshot that the table no longer has, and makes COPIED exact.
  func drop(
    _ references: TreeReferences, by job: JobSlot, _ step: SnapshotProgress
  ) async throws(ImageError) {
    let sharing = mapping.tables.sharing
    sharing.beginDropping()
    defer { sharing.endDropping() }
    let total = UInt64(2 * references.tables.count)
    var done: UInt64 = 0
    var rest = references
    while try await rest.step(.lower(punches: options.discardsToHost), in: self) {
      if rest.position.slice != 0 { continue }
      done += 1
      _ = await step(done, total)
    }
    for index in references.tables {
      if index < mapping.tables.l1.count { try await settleCopied(ofTable: index, by: job) }
      done += 1
      _ = await step(done, total)
    }
  }
}
