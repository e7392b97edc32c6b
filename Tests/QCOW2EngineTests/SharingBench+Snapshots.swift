import BlockCore
import QCOW2Format
import TestSupport
import TestTools
import Testing

@testable import QCOW2Engine

/// Snapshots as jobs take, delete and apply them.
extension SharingBench {
  /// Takes a snapshot; what it must hold is noted at the cut.
  ///
  /// Until the references are counted somebody looks at least once after the cut: a change of the
  /// guest, or the callback. No change is noted in between.
  @discardableResult
  func create(
    _ name: String = "one", isWanted: @escaping @Sendable (UInt64) -> Bool = { _ in true }
  ) async throws -> CreatedSnapshot? {
    waitsForCut = true
    defer { waitsForCut = false }
    return try await image.createSnapshot(named: name) { done, _ in
      self.noteCut()
      return isWanted(done)
    }
  }

  /// Deletes a snapshot; with it goes what it must hold.
  func delete(_ name: String = "one") async throws {
    forgetSnapshot()
    _ = try await image.deleteSnapshot(.name(name)) { _, _ in true }
  }

  /// The disk gets what the snapshot has.
  func apply(_ name: String = "one") async throws {
    _ = try await image.applySnapshot(.name(name)) { _, _ in true }
  }

  /// Looks at what the bytes of a crash hold, as whoever opens the image next would.
  ///
  /// An image that is not marked dirty must be right but for leaks; one that is, when it has been
  /// counted anew. Version 2 cannot be marked: there COPIED may be as before or after.
  func strictCrashProblem(_ bytes: ImageBytes) -> String? {
    let isOld = bytes.be32(4) == 2
    let isDirty = !isOld && bytes.be64(72) & 1 != 0
    if isDirty {
      // Before it is counted anew, at least nothing in use counts as free, unless refcounts are lazy.
      let verifier = bench.verifier([bytes])
      verifier.allowsStaleBitmaps = true
      for error in verifier.check().errors
      where !error.contains(": entry ") && bench.builder.compatible & 1 == 0 {
        return "dirty: " + error
      }
      if let problem = rebuildIfDirty(bytes) { return problem }
    }
    let verifier = bench.verifier([bytes])
    // Counted anew, no compressed cluster has a bitmap.
    verifier.allowsStaleBitmaps = !isDirty
    for error in verifier.check().errors where !(isOld && error.contains(": entry ")) {
      return (isDirty ? "counted anew: " : "") + error
    }
    return snapshotProblem(bytes)
  }

  /// Which of two disks the bytes of a crash hold: nil for neither.
  func disk(_ bytes: ImageBytes, among disks: [[UInt32]]) -> Int? {
    let verifier = bench.verifier([bytes])
    let found = (0..<sectorCount).map { Self.found(verifier.sector($0), $0) }
    return disks.firstIndex(of: found)
  }
}
