import BlockCore
import QCOW2Format
import Synchronization

extension Image {
  /// Changes the virtual size, while the guest's requests wait; `size` is in bytes.
  ///
  /// What is added reads as zeros, whatever the image or a longer backing file has there; nothing
  /// is preallocated. What is cut off is gone, and its clusters are freed. VM state that the active
  /// disk may have, which lies behind the disk, does not survive. A crash leaves the old size or
  /// the new one; after a cut, clusters behind the end may still be mapped, which growth then
  /// clears.
  ///
  /// - Throws: ``ImageError/cannotResize(to:_:)`` with nothing changed; any other error may leave
  ///   the disk with the new size: see ``size``.
  package func resize(to size: UInt64) async throws(ImageError) {
    _ = try await resize(SizeChange(.exactly(size)))
  }

  /// The same for a size that may be relative; it is found out when nobody else can change it.
  ///
  /// - Returns: The size before and after; alike if there was nothing to do.
  package func resize(_ change: SizeChange) async throws(ImageError) -> SizeStep {
    let step = Mutex(SizeStep(old: 0, new: 0))
    try await administer { (job) async throws(ImageError) in
      let old = self.size
      let size = try change.size(from: old)
      step.withLock { $0 = SizeStep(old: old, new: size) }
      if size == old { return }
      try self.requireResizable(to: size)
      try await self.exclusively { () async throws(ImageError) in
        if size > old {
          try await self.grow(from: old, to: size, worker: job.worker)
        } else {
          try await self.shrink(to: size, worker: job.worker)
        }
      }
    }
    return step.withLock { $0 }
  }

  /// Throws for what QEMU refuses, too.
  private func requireResizable(to size: UInt64) throws(ImageError) {
    guard size & 511 == 0 else { throw .cannotResize(to: size, .partialSector) }
    let (most, overflow) = Self.mostL1Entries.multipliedReportingOverflow(
      by: geometry.bytesPerL2Table)
    let limit = min(overflow ? UInt64.max : most, UInt64(Int64.max) & ~511)
    guard size <= limit else { throw .cannotResize(to: size, .tooLarge(most: limit)) }
    guard header.snapshotCount == 0 || header.version >= 3 else {
      throw .cannotResize(to: size, .snapshotsInVersion2)
    }
  }

  private func grow(
    from old: UInt64, to size: UInt64, worker: Int
  ) async throws(ImageError) {
    try await growL1(to: geometry.l1EntriesNeeded(forSize: size))
    try await writer.growDataFile(from: old, to: size, worker: worker)
    if !writer.guestData.isRaw || reader.hasBacking {
      try await clear(old..<size, worker: worker)
    }
    try await setSize(size)
  }

  /// Brings a new size into force, durably, with bitmaps that fit it; the gate is shut.
  private func setSize(_ size: UInt64) async throws(ImageError) {
    await changes?.mutex.acquire()
    defer { changes?.mutex.release() }
    let bitmaps = try await BitmapResize(self, to: size)
    try await durability.flusher.flush()
    if let bitmaps {
      try await bitmaps.commit()
    } else {
      try await durability.headerEditor.setSize(size)
    }
    mapping.currentSize.store(size, ordering: .relaxed)
    bitmaps?.finish()
    await bitmaps?.clearCut()
  }

  /// Makes clusters behind the disk read as zeros, up to the end of the last one.
  ///
  /// They can be mapped: the disk's last cluster reaches behind its end, an earlier cut may have
  /// failed half-way, or there is VM state. Tables that do not exist are skipped as a whole, so
  /// that the work is bounded by what is mapped.
  private func clear(_ range: Range<UInt64>, worker: Int) async throws(ImageError) {
    let perTable = geometry.bytesPerL2Table
    let end = alignedUp(range.upperBound)
    var next = range.lowerBound
    while next < end {
      let tableEnd = min((next / perTable + 1) * perTable, end)
      if mapping.tables.l1.load(Int(next / perTable)) != 0 || next < backingLength {
        // The disk's last cluster separately: only part of it changes.
        let firstEnd = min(alignedUp(next), tableEnd)
        try await zeroBehind(next..<firstEnd, worker: worker)
        try await zeroBehind(firstEnd..<tableEnd, worker: worker)
      }
      next = tableEnd
    }
  }

  private func zeroBehind(_ range: Range<UInt64>, worker: Int) async throws(ImageError) {
    if range.isEmpty { return }
    try await writer.zero(range, .discard, worker: worker)
  }

  /// Where the backing file's contents end, in guest bytes; 0 without one.
  private var backingLength: UInt64 { reader.backing?.length ?? 0 }

  private func alignedUp(_ offset: UInt64) -> UInt64 {
    geometry.clusters(covering: offset) << UInt64(geometry.clusterBits)
  }

  private func shrink(to size: UInt64, worker: Int) async throws(ImageError) {
    // Once this is durable, nothing behind the end can be asked for any more.
    try await setSize(size)
    let perTable = geometry.bytesPerL2Table
    var next = alignedUp(size)
    for index in Int(next / perTable)..<max(mapping.tables.l1.count, Int(next / perTable)) {
      let tableEnd = UInt64(index + 1) * perTable
      if mapping.tables.l1.load(index) != 0 {
        _ = try await writer.changeMapping(next..<tableEnd, .forget, worker: worker)
      }
      next = tableEnd
    }
    // Slices of tables that go away must not be written any more.
    try await durability.flusher.flush()
    dropTables(from: Int(geometry.l1EntriesNeeded(forSize: size)))
    try await durability.flusher.flush()
    try await writer.cutDataFile(to: size)
  }

  /// Takes away L2 tables that hold no clusters any more and have no dirty slices.
  private func dropTables(from first: Int) {
    for index in first..<max(mapping.tables.l1.count, first) {
      guard let table = mapping.tables.place(index).table else { continue }
      let cluster = geometry.hostCluster(of: table)
      mapping.tables.l1.store(L1Entry.unallocated.raw, at: index)
      supply.metadata.tables.remove(cluster)
      supply.frees.add([ClusterRun(start: cluster, count: 1, isFresh: false)])
    }
    durability.noteDirty()
  }
}
