package import QCOW2Engine

/// The disk becomes what an internal snapshot has: `snapshot -a`.
///
/// For a disk that nobody uses. What the disk had is gone; the snapshot stays. After the last step
/// there is no way back, and a cancellation comes too late.
package struct SnapshotApplyJob: SnapshotChange {
  package static let name = "snapshot-apply"
  package var snapshot: SnapshotSelector

  package init(_ snapshot: SnapshotSelector) { self.snapshot = snapshot }

  package func change(
    _ image: Image, _ progress: SnapshotProgress
  ) async throws(ImageError) -> Bool {
    try await image.applySnapshot(snapshot, progress) != nil
  }
}
