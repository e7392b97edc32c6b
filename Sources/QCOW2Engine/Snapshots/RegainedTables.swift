import BlockCore
import QCOW2Format

// COPIED when references have come or gone while serving; see ``Sharing``.

extension L2Tables {
  /// Makes COPIED in some entries of a slice what the refcounts say.
  ///
  /// Entries that lose COPIED are written in place by nobody: they lie in a table that has none itself.
  /// For those that get it the caller holds the guest clusters in ``Mapping/inFlight``, or the table has
  /// no COPIED: else a write that copies the cluster could lose one in place. With `clears`, what is
  /// shared loses COPIED, too.
  ///
  /// - Returns: Whether any entry has changed.
  @discardableResult
  func settle(
    _ key: HostOffset, entries: Range<Int>, clears: Bool
  ) async throws(ImageError) -> Bool {
    let allocator = arenas.allocator
    await allocator.mutex.acquire()
    defer { allocator.mutex.release() }
    let found = try await placed(key, entries, looksAtCopied: clears)
    var changes: [(position: Int, old: L2Entry, new: L2Entry)] = []
    let counts = try await allocator.refcounts(of: found.map(\.cluster))
    for (number, (position, entry, _)) in found.enumerated() {
      let isOurs = counts[number] == 1
      if entry.copied(isOurs) != entry { changes.append((position, entry, entry.copied(isOurs))) }
    }
    if changes.isEmpty { return false }
    return try await cache.withSlice(
      key, storage: storage, makeRoom: allocator.makeRoom
    ) { slice in
      var isChanged = false
      // An entry that has changed meanwhile was linked anew, with COPIED as it should be.
      for (position, old, new) in changes where unsafe slice.bytes.be64(position) == old.raw {
        slice.storeBE64(new.raw, position)
        isChanged = true
      }
      return isChanged
    }
  }

  /// The entries of a slice with a host cluster of their own; those with COPIED only if asked for.
  private func placed(
    _ key: HostOffset, _ entries: Range<Int>, looksAtCopied: Bool
  ) async throws(ImageError) -> [(position: Int, entry: L2Entry, cluster: HostCluster)] {
    let geometry = geometry
    return try unsafe await cache.lookAt(key, storage: storage) { bytes in
      entries.compactMap { index in
        let position = index << geometry.l2EntryBits
        let entry = unsafe L2Entry(raw: bytes.be64(position))
        guard entry.kind(hasZeroFlag: false) == .data, let host = entry.hostCluster,
          looksAtCopied || !entry.isCopied
        else { return nil }
        return (position, entry, geometry.hostCluster(of: host))
      }
    }
  }

  /// Makes COPIED what the refcounts say in a table that has none itself, then at the table, if it is
  /// ours; call with the table's index held.
  ///
  /// - Returns: Whether the table can be written in place from now on.
  func settle(_ table: HostOffset, at index: Int) async throws(ImageError) -> Bool {
    let perSlice = cache.sliceSize >> geometry.l2EntryBits
    var key = table
    while key < table + geometry.clusterSize {
      try await settle(key, entries: 0..<perSlice, clears: true)
      key = key + UInt64(cache.sliceSize)
    }
    let allocator = arenas.allocator
    await allocator.mutex.acquire()
    defer { allocator.mutex.release() }
    guard try await allocator.refcount(of: geometry.hostCluster(of: table)) == 1 else {
      return false
    }
    l1.store(L1Entry(l2Table: table, copied: true).raw, at: index)
    return true
  }
}

extension Writer {
  /// Gives the entries of a part COPIED whose clusters are ours again; the caller holds the part's
  /// clusters.
  ///
  /// - Returns: whether there were any: then the entries are to be looked at anew.
  func regain(_ part: SlicePart, _ table: HostOffset) async throws(ImageError) -> Bool {
    guard tables.sharing.mayRegain else { return false }
    let entries = part.firstEntry..<(part.firstEntry + part.clusters.count)
    return try await tables.settle(table + part.sliceOffset, entries: entries, clears: false)
  }
}

extension Image {
  /// Gives all tables to a copy of L1, and returns that copy; call inside ``exclusively(_:)``.
  ///
  /// From now on each table and each cluster is copied before it changes. The caller counts the copy's
  /// references (``TreeReferences``) beside the guest and then calls ``endSharing()``; until then no
  /// cluster that loses a pointer goes back, so the copy's clusters stay.
  func beginSharing() -> [L1Entry] {
    assert(!gate.isOpen, "COPIED is taken away under requests")
    mapping.tables.sharing.beginCounting()
    supply.frees.hold()
    let l1 = mapping.tables.l1.table
    var copy: [L1Entry] = []
    copy.reserveCapacity(l1.count)
    for index in 0..<l1.count {
      let entry = L1Entry(raw: l1.load(index))
      copy.append(entry.copied(false))
      if entry.isCopied { l1.store(entry.copied(false).raw, at: index) }
    }
    durability.noteDirty()
    return copy
  }

  /// The copy's references are counted.
  func endSharing() {
    supply.frees.endHold()
    mapping.tables.sharing.endCounting()
  }

  /// Makes COPIED what the refcounts say in the L1 entry at `index` and in its table, beside the guest.
  ///
  /// A job calls it for each entry when it has counted references or given some up, so that the image
  /// is as ``Sharing`` found it. Does nothing while some other job counts.
  func settleCopied(ofTable index: Int, by job: JobSlot) async throws(ImageError) {
    await admission.enter(at: job.slot)
    defer { admission.leave(at: job.slot) }
    let (tables, slices, inFlight) = (mapping.tables, mapping.slices, mapping.inFlight)
    if tables.sharing.isCounting || tables.sharing.hasDataFile { return }
    if try await tables.settleShared(index) { return durability.noteDirty() }
    // Only now: a write may have copied the table while the line above waited for it. From here on it is
    // ours, and stays where it is: nobody takes a snapshot beside this job.
    guard let table = try tables.usable(index).table else { return }
    let count = Int(slices.entriesPerSlice)
    let first = UInt64(index) << UInt64(geometry.l2Bits)
    for number in 0..<(geometry.l2Entries / slices.entriesPerSlice) {
      let start = first + number << UInt64(slices.entryBits)
      let clusters = GuestCluster(start)..<GuestCluster(start + slices.entriesPerSlice)
      await inFlight.acquire(clusters)
      defer { inFlight.release(clusters) }
      let key = table + number * UInt64(mapping.cache.sliceSize)
      if try await tables.settle(key, entries: 0..<count, clears: false) { durability.noteDirty() }
    }
  }
}
