package import QCOW2Format

extension Image {
  /// Gives an internal snapshot another VM state; what it had is gone, its disk stays.
  ///
  ///     state, its L2 tables, refcounts | L1, table | header | what only the old state had goes back
  ///
  /// Offline: nobody else uses the image. A crash leaves the old state or the new one, and at worst the
  /// clusters of the other leaked. The old state shares its clusters with the disk only where a program
  /// has left VM state behind the disk: while those references go, the image is marked dirty.
  ///
  /// - Parameters:
  ///   - selector: Which snapshot; of several the first.
  ///   - size: Of the new state, in bytes; with 0 the snapshot has none afterwards.
  ///   - source: Gives the new state, in pieces, in order.
  /// - Returns: The snapshot as it was; nil if `source` said no, with nothing changed.
  /// - Throws: ``ImageError/noSuchSnapshot(_:existing:)``, ``ImageError/brokenSnapshot(id:_:)``;
  ///   ``ImageError/vmStateTooLarge(bytes:most:)``.
  package func replaceVMState(
    of selector: SnapshotSelector, size: UInt64, from source: VMStateSource
  ) async throws(ImageError) -> Snapshot? {
    try await withSnapshotWork { (job) async throws(ImageError) in
      let table = try await SnapshotTableChange(self)
      guard let snapshot = selector.first(in: table.snapshots),
        let index = table.snapshots.firstIndex(of: snapshot)
      else { throw .noSuchSnapshot(selector, existing: table.snapshots) }
      let tree = try await l1Table(of: snapshot)
      let first = Int(
        geometry.l1EntriesNeeded(forSize: snapshot.entry.diskSize ?? header.size))
      try requireRoom(size, from: first)
      var state = try VMStateTables(self, from: UInt64(first))
      let old = TreeReferences(tree.enumerated().map { $0 < first ? L1Entry(raw: 0) : $1 })
      let doubt = old.tables.isEmpty ? nil : RefcountDoubt(durability)
      do throws(ImageError) {
        guard try await state.write(size, from: source) else {
          await state.giveUp()
          return nil
        }
        try await doubt?.prepare()
      } catch {
        await state.giveUp()
        throw error
      }
      do throws(SnapshotTableFailure) {
        try await link(
          state, after: tree, first, size, in: table, at: index, snapshot, doubt)
      } catch {
        if !error.isInForce {
          doubt?.noteEnd()
          await state.giveUp()
        }
        throw error.error
      }
      try await drop(old, by: job) { _, _ in true }
      if let run = l1Clusters(of: snapshot) {
        for cluster in run.start..<run.end { supply.metadata.tables.remove(cluster) }
        supply.frees.add([run])
      }
      try await doubt?.end()
      return snapshot
    }
  }

  /// Throws if no L1 table reaches over so much VM state.
  private func requireRoom(_ size: UInt64, from first: Int) throws(ImageError) {
    let tables = Self.mostL1Entries - min(UInt64(first), Self.mostL1Entries)
    let (most, overflow) = tables.multipliedReportingOverflow(by: geometry.bytesPerL2Table)
    let limit = overflow ? UInt64(Int64.max) : min(most, UInt64(Int64.max))
    if size > limit { throw .vmStateTooLarge(bytes: size, most: limit) }
  }

  /// Brings the new L1 table of a snapshot into force: its disk as before, then the new state.
  private func link(
    _ state: VMStateTables, after tree: [L1Entry], _ first: Int, _ size: UInt64,
    in table: SnapshotTableChange, at index: Int, _ snapshot: Snapshot, _ doubt: RefcountDoubt?
  ) async throws(SnapshotTableFailure) {
    var l1 = Array(tree.prefix(first))
    if !state.entries.isEmpty {
      l1 += Array(repeating: L1Entry(raw: 0), count: first - l1.count) + state.entries
    }
    let diskSize = header.size
    let count = UInt32(clamping: l1.count)
    try await link(l1, in: table, with: { doubt?.beginning($0) ?? [] }) { edit, place in
      edit.replace(at: index) { old in
        snapshot.entry.leading(
          to: place, entries: count, vmStateSize: size, diskSize: diskSize, of: old)
      }
    }
  }
}
