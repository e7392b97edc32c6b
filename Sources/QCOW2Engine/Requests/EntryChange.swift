import BlockCore
import QCOW2Format

/// What DISCARD and WRITE_ZEROES do to the mapping of whole subclusters.
enum EntryChange: Sendable {
  /// Let go of the data. In version 3 the entry says zeros afterwards, with or without a backing file:
  /// the image may get a backing file later. What has no data, and none behind it, stays as it is.
  case discard
  /// Read as zeros, let go of the data. In version 3 the entry says zeros, whatever was there.
  case zero
  /// Read as zeros, keep what is allocated allocated.
  case zeroInPlace
  /// Let go of everything: only for whole clusters behind the end of the disk.
  case forget
}

extension Writer {
  /// The entry after `change` of some of its subclusters; the same if the mapping cannot say it.
  func changed(_ old: ClusterEntry, _ subclusters: Range<Int>, _ change: EntryChange)
    -> ClusterEntry
  {
    if change == .forget { return ClusterEntry(.unallocated) }
    return rules.isExtended
      ? changedExtended(old, subclusters, change) : ClusterEntry(changedStandard(old, change))
  }

  private func changedStandard(_ old: ClusterEntry, _ change: EntryChange) -> L2Entry {
    let entry = old.descriptor
    let (state, _) = rules.run(old, from: 0)
    if !rules.hasZeroFlag {
      // Version 2 reads zeros only where there is no cluster and no backing file.
      return !hasBacking ? .unallocated : entry
    }
    if change == .zeroInPlace && entry.isCopied && rules.hostCluster(old) != nil {
      return entry.zeroed
    }
    switch (state, change) {
    case (.zero, .zeroInPlace): return entry
    case (.zero, _) where rules.hostCluster(old) == nil: return entry
    case (.unallocated, .discard) where !hasBacking: return entry
    default: return .zero
    }
  }

  private func changedExtended(
    _ old: ClusterEntry, _ subclusters: Range<Int>, _ change: EntryChange
  ) -> ClusterEntry {
    let mask = Self.mask(subclusters)
    let isCompressed = old.descriptor.kind(hasZeroFlag: false) == .compressed
    if isCompressed && mask != .max { return old }
    let allocated = isCompressed ? UInt32.max : old.bitmap.allocated
    let zero = isCompressed ? UInt32(0) : old.bitmap.zero
    let left = allocated & ~mask
    let bitmap = SubclusterBitmap(
      allocated: left,
      zero: zero | newZeros(mask, allocated, change, hasData: isCompressed || hasHost(old)))
    let keeps =
      left != 0
      || change == .zeroInPlace && old.descriptor.isCopied && hasHost(old)
    return ClusterEntry(keeps ? old.descriptor : .unallocated, bitmap)
  }

  private func hasHost(_ entry: ClusterEntry) -> Bool { rules.hostCluster(entry) != nil }

  /// The subclusters of `mask` that get a zero bit.
  ///
  /// WRITE_ZEROES sets all of them. DISCARD leaves a subcluster unallocated that has no data, if no
  /// backing file could show there; a cluster that loses its place as a whole becomes zeros as a whole.
  private func newZeros(
    _ mask: UInt32, _ allocated: UInt32, _ change: EntryChange, hasData: Bool
  ) -> UInt32 {
    let isWhole = mask == .max && hasData
    return change != .discard || hasBacking || isWhole ? mask : allocated & mask
  }

  /// Applies `change` to guest bytes that start and end on subclusters (or at the end of the disk).
  ///
  /// What the old entries referred to is released once the new ones are durable.
  ///
  /// - Returns: the ranges that the mapping cannot say: parts of compressed clusters.
  func changeMapping(
    _ range: Range<UInt64>, _ change: EntryChange, worker: Int
  ) async throws(ImageError) -> [Range<UInt64>] {
    var left: [Range<UInt64>] = []
    var next = range.lowerBound
    while next < range.upperBound {
      let part = slices.part(from: GuestOffset(next), length: range.upperBound - next)
      left += try await changePart(part, change, worker: worker)
      next += part.length
    }
    return left
  }

  private func changePart(
    _ part: SlicePart, _ change: EntryChange, worker: Int
  ) async throws(ImageError) -> [Range<UInt64>] {
    await inFlight.acquire(part.clusters)
    defer { inFlight.release(part.clusters) }
    return try await changeHeld(part, change, worker: worker)
  }

  /// The same for a part whose clusters the caller holds in ``inFlight``.
  func changeHeld(
    _ part: SlicePart, _ change: EntryChange, worker: Int
  ) async throws(ImageError) -> [Range<UInt64>] {
    guard try await isChangedBy(change, part) else { return [] }
    let table: HostOffset
    do { table = try await tables.writableTable(part.l1Index, worker: worker) } catch {
      // Without a table and a backing file all of it reads as zeros: only the flags cannot be had.
      guard error.errno == .noSpace, !hasBacking, tables.l1.load(part.l1Index) == 0 else {
        throw error
      }
      return []
    }
    if change != .forget { try await tables.provideStorage(part.l1Index) }
    let outcome = try await mapping.withEntries(part, table: table) { entries in
      self.replace(&entries, part, change)
    }
    frees.add(outcome.released)
    durability.noteDirty()
    if let bad = outcome.bad {
      throw mapping.lookup.isUsable(bad.entry, of: bad.cluster)
        ? .overlapsMetadata(cluster: geometry.hostCluster(of: bad.host))
        : mapping.badEntry(bad.entry, cluster: bad.cluster)
    }
    await punchExternal(outcome.unmapped)
    return outcome.left
  }

  /// Whether the change would alter any entry; a missing table alters only what has a backing file.
  private func isChangedBy(
    _ change: EntryChange, _ part: SlicePart
  ) async throws(ImageError) -> Bool {
    guard let table = try tables.usable(part.l1Index).table else {
      return changed(ClusterEntry(.unallocated), 0..<rules.subclusters, change)
        != ClusterEntry(.unallocated)
    }
    return try await mapping.lookAtEntries(part, table: table) { entries in
      (0..<entries.count).contains { index in
        let entry = entries[index]
        let cluster = part.clusters.lowerBound + UInt64(index)
        return !self.mapping.lookup.isUsable(entry, of: cluster)
          || self.isPartlyCompressed(entry, part, index)
          || self.changed(entry, self.subclusters(of: part, index), change) != entry
      }
    }
  }

  /// The subclusters of the cluster at `index` of a part that lie in it; those behind the end of the disk
  /// go with the last one, so that a cluster that is cut by the end can be changed as a whole.
  func subclusters(of part: SlicePart, _ index: Int) -> Range<Int> {
    if !rules.isExtended { return 0..<1 }
    let start = UInt64(index) << UInt64(geometry.clusterBits)
    let head = part.start.bytes & geometry.clusterMask
    let low = max(head, start) - start
    let isAtEnd = part.start.bytes + part.length >= size
    let end = isAtEnd ? geometry.clusterSize : min(head + part.length - start, geometry.clusterSize)
    let bits = UInt64(rules.subclusterBits)
    return Int(low >> bits)..<Int((end + rules.subclusterSize - 1) >> bits)
  }

  private func isPartlyCompressed(
    _ entry: ClusterEntry, _ part: SlicePart, _ index: Int
  ) -> Bool {
    rules.isExtended && entry.descriptor.kind(hasZeroFlag: false) == .compressed
      && subclusters(of: part, index).count < rules.subclusters
  }

  private struct Outcome: Sendable {
    var released: [ClusterRun] = []
    var left: [Range<UInt64>] = []
    /// Clusters of the external data file that nothing maps any more.
    var unmapped: [HostOffset] = []
    var bad: (entry: ClusterEntry, cluster: GuestCluster, host: HostOffset)?
  }

  /// Replaces entries up to the first one that breaks the format.
  private func replace(
    _ entries: inout SliceEntries, _ part: SlicePart, _ change: EntryChange
  ) -> Outcome {
    let lookup = mapping.lookup
    var outcome = Outcome()
    for index in 0..<entries.count {
      let old = entries[index]
      let cluster = part.clusters.lowerBound + UInt64(index)
      let host = rules.hostCluster(old)
      let isMetadata = host.map { lookup.holdsMetadata($0) } ?? false
      if isMetadata || !lookup.isUsable(old, of: cluster) {
        outcome.bad = (old, cluster, host ?? HostOffset(0))
        return outcome
      }
      let subclusters = subclusters(of: part, index)
      if isPartlyCompressed(old, part, index) {
        let start = geometry.start(of: cluster).bytes
        let bits = UInt64(rules.subclusterBits)
        outcome.left.append(
          (start + UInt64(subclusters.lowerBound) << bits)..<(start + UInt64(
            subclusters.upperBound) << bits))
        continue
      }
      let new = changed(old, subclusters, change)
      if new == old { continue }
      if guestData.isExternal, let host, rules.hostCluster(new) == nil {
        outcome.unmapped.append(host)
      }
      entries.link(index, to: new, lookup, released: &outcome.released)
    }
    return outcome
  }

  /// Gives space of the external data file back while the guest clusters are still held: a cluster
  /// there belongs to one guest cluster for good, so a later punch could hit a later write.
  ///
  /// The host file's entries still point there, and older reads may be under way: both find zeros or
  /// what there was, as of a regular file, and may. On a block device the contents would be anything,
  /// and zeros decipher to anything: there the space is kept.
  private func punchExternal(_ clusters: [HostOffset]) async {
    guard options.discardsToHost, !guestData.isTransformed,
      !guestData.storage.file.traits.isBlockDevice
    else { return }
    for cluster in clusters {
      await guestData.storage.punchHole(at: cluster, length: geometry.clusterSize)
    }
  }
}
