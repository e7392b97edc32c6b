package import QCOW2Engine

/// An internal snapshot goes: `snapshot -d`.
///
/// It is gone at once; what only it had goes back while requests go on. After the first step there is
/// no way back, and a cancellation comes too late.
package struct SnapshotDeleteJob: SnapshotChange {
  package static let name = "snapshot-delete"
  package var snapshot: SnapshotSelector

  package init(_ snapshot: SnapshotSelector) { self.snapshot = snapshot }

  package func change(
    _ image: Image, _ progress: SnapshotProgress
  ) async throws(ImageError) -> Bool {
    try await image.deleteSnapshot(snapshot, progress) != nil
  }
}
