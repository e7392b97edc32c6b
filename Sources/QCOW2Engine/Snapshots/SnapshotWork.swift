package import QCOW2Format

/// Called after each piece of a long change of snapshots, with how many steps are done, of how many.
///
/// Returns whether the change is still wanted. It is not asked where there is no way back.
package typealias SnapshotProgress = @Sendable (_ done: UInt64, _ total: UInt64) async -> Bool

extension Image {
  /// Runs a change of the snapshots, one at a time, with a worker number of its own.
  ///
  /// - Throws: ``ImageError/readOnly``, ``ImageError/writesStopped``,
  ///   ``ImageError/snapshotWithDataFile``, or what `body` throws.
  func withSnapshotWork<R>(
    _ body: (JobSlot) async throws(ImageError) -> R
  ) async throws(ImageError) -> R {
    if options.readOnly { throw .readOnly }
    if mapping.tables.sharing.hasDataFile { throw .snapshotWithDataFile }
    return try await withJobSlot { (job) async throws(ImageError) -> R in
      await snapshotting.acquire()
      defer { snapshotting.release() }
      do throws(ImageError) {
        try health.requireWrites()
        return try await body(job)
      } catch {
        await faults.report(error)
        throw error
      }
    }
  }

  /// Makes COPIED what the refcounts say, in the tables that a tree of references has given up.
  func settleCopied(
    of tree: TreeReferences, by job: JobSlot, _ step: () async -> Void = {}
  ) async throws(ImageError) {
    for index in tree.tables where index < mapping.tables.l1.count {
      try await settleCopied(ofTable: index, by: job)
      await step()
    }
  }

  /// The internal snapshots, in the order of the table.
  package func snapshots() async throws(ImageError) -> [Snapshot] {
    try await SnapshotTable.read(header, reader.storage, isReadOnly: options.readOnly).snapshots
  }
}
