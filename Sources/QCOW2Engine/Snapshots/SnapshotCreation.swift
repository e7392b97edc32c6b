import BlockCore
import Glibc
import QCOW2Format

/// A snapshot that was taken.
package struct CreatedSnapshot: Equatable, Sendable {
  /// Its ID.
  package let id: String
  /// For how many nanoseconds requests were kept out.
  package let pause: UInt64
}

/// What a cut has found.
private struct SnapshotCut: Sendable {
  let l1: [L1Entry]
  /// In bytes.
  let diskSize: UInt64
  let time: timespec
}

extension Image {
  /// Takes an internal snapshot of the disk as it is at one moment, while guests go on.
  ///
  ///     DIRTY | cut | references are raised beside the guest | L1, table | header, without DIRTY
  ///
  /// The cut keeps requests out while the L1 table is copied in memory, and no longer. A crash before
  /// the header is written leaves no snapshot, and afterwards the whole snapshot. In between, refcounts
  /// may be too high: see ``RefcountDoubt``. A failure, or `isWanted` that says no, takes all back.
  ///
  /// - Parameters:
  ///   - name: 1 to 255 bytes, or none.
  ///   - isWanted: Called after each L2 table.
  /// - Returns: Nil if it was not wanted any more.
  /// - Throws: ``ImageError/tooManyReferences(cluster:most:)``, ``ImageError/snapshotTableFull``,
  ///   ``ImageError/badSnapshotName(bytes:most:)``, ``ImageError/snapshotWithDataFile``.
  package func createSnapshot(
    named name: String, _ isWanted: SnapshotProgress
  ) async throws(ImageError) -> CreatedSnapshot? {
    guard name.utf8.count <= NewSnapshot.mostNameBytes else {
      throw .badSnapshotName(bytes: name.utf8.count, most: NewSnapshot.mostNameBytes)
    }
    return try await withSnapshotWork { (job) async throws(ImageError) in
      try await create(name, by: job, isWanted)
    }
  }

  private func create(
    _ name: String, by job: JobSlot, _ isWanted: SnapshotProgress
  ) async throws(ImageError) -> CreatedSnapshot? {
    let table = try await SnapshotTableChange(self)
    let doubt = RefcountDoubt(durability)
    try await doubt.begin()
    // So that a request which waits for a flush does not hold up the cut.
    do throws(ImageError) {
      if durability.flusher.hasDirtySlices { try await durability.flusher.flush() }
    } catch {
      await doubt.abandon()
      throw error
    }
    let (cut, pause) = await self.cut { self.makeCut() }
    var references = TreeReferences(cut.l1)
    var isCounted = false
    var failure: ImageError?
    do throws(ImageError) { isCounted = try await count(&references, isWanted) } catch {
      failure = error
    }
    endSharing()
    if isCounted {
      do throws(SnapshotTableFailure) {
        let id = try await link(cut, named: name, in: table, doubt)
        doubt.noteEnd()
        return CreatedSnapshot(id: id, pause: pause)
      } catch {
        if error.isInForce { throw error.error }
        failure = error.error
      }
    }
    await giveUp(TreeReferences(cut.l1, upTo: references.position), doubt, by: job)
    if let failure { throw failure }
    return nil
  }

  private func makeCut() -> SnapshotCut {
    var time = timespec()
    unsafe clock_gettime(CLOCK_REALTIME, &time)
    return SnapshotCut(l1: beginSharing(), diskSize: header.size, time: time)
  }

  /// Raises the references of a tree.
  ///
  /// - Returns: False if it was not wanted any more.
  func count(
    _ references: inout TreeReferences, _ isWanted: SnapshotProgress
  ) async throws(ImageError) -> Bool {
    let total = UInt64(references.tables.count)
    var (index, done): (Int, UInt64) = (-1, 0)
    while true {
      guard try await references.step(.raise, in: self) else { return true }
      if references.position.index == index || references.position.slice != 0 { continue }
      index = references.position.index
      done += 1
      if !(await isWanted(done, total)) { return false }
    }
  }

  /// Writes the snapshot's L1 table, and the snapshot table with an entry for it.
  ///
  /// - Returns: The snapshot's ID.
  private func link(
    _ cut: SnapshotCut, named name: String, in table: SnapshotTableChange, _ doubt: RefcountDoubt
  ) async throws(SnapshotTableFailure) -> String {
    let id = Snapshot.newID(beside: table.snapshots)
    try await link(cut.l1, in: table, with: doubt.ending) { edit, place in
      edit.append(
        NewSnapshot(
          l1Table: place, l1Size: UInt32(clamping: cut.l1.count), id: id, name: name,
          seconds: UInt32(clamping: cut.time.tv_sec),
          nanoseconds: UInt32(clamping: cut.time.tv_nsec), diskSize: cut.diskSize))
    }
    return id
  }

  /// Brings a snapshot table into force of which one entry leads to a new L1 table.
  ///
  /// - Parameters:
  ///   - l1: The entries of the new L1 table.
  ///   - table: The table in force.
  ///   - patches: What else of the header changes in the same write.
  ///   - edit: Makes the entry, for an L1 table at this host offset.
  /// - Throws: Why not; says whether the header has the new table nevertheless.
  func link(
    _ l1: [L1Entry], in table: SnapshotTableChange, with patches: (Header) -> [HeaderPatch],
    _ edit: (inout SnapshotTableEdit, HostOffset) -> Void
  ) async throws(SnapshotTableFailure) {
    let clusters = geometry.clusters(covering: UInt64(l1.count) * 8)
    var run = ClusterRun(start: HostCluster(0), count: 0, isFresh: false)
    do throws(ImageError) {
      if clusters > 0 { run = try await supply.allocator.reserveContiguous(clusters) }
    } catch { throw SnapshotTableFailure(error: error, isInForce: false) }
    let place = geometry.start(of: run.start)
    for cluster in run.start..<run.end { supply.metadata.tables.insert(cluster) }
    var table = table
    edit(&table.edit, place)
    do throws(SnapshotTableFailure) {
      try await table.commit(with: patches) { () async throws(ImageError) in
        if run.count == 0 { return }
        let bytes = try Self.l1Bytes(l1, count: 0, self.geometry)
        try await self.reader.storage.write(from: bytes, at: place)
      }
    } catch {
      if !error.isInForce, run.count > 0 {
        for cluster in run.start..<run.end { supply.metadata.tables.remove(cluster) }
        try? await supply.allocator.unreserve(run)
      }
      throw error
    }
  }

  /// Takes back what has been counted of a snapshot that does not come to be.
  ///
  /// If that fails, the image stays marked dirty, and clusters leak until it is opened anew.
  private func giveUp(
    _ references: TreeReferences, _ doubt: RefcountDoubt, by job: JobSlot
  ) async {
    let sharing = mapping.tables.sharing
    sharing.beginDropping()
    defer { sharing.endDropping() }
    do throws(ImageError) {
      var counted = references
      while try await counted.step(.lower(punches: options.discardsToHost), in: self) {}
      try await settleCopied(of: references, by: job)
      try await doubt.end()
    } catch { await faults.report(error) }
  }
}
