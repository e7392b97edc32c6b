import BlockCore
import QCOW2Format

/// The entries of one ``SlicePart``, in the cache, under the stripe's lock.
///
/// An entry changes by one store, or by several that each leave an entry in which every subcluster reads
/// as before or as after: the process may die between any two of them.
@safe
struct SliceEntries {
  private let bytes: UnsafeRawPointer
  /// Nil for entries that are only looked at.
  private var slice: CachedSlice?
  private let first: Int
  private let isExtended: Bool
  let count: Int

  /// Entries to look at.
  @inline(__always) init(bytes: UnsafeRawPointer, first: Int, count: Int, isExtended: Bool) {
    unsafe self.bytes = unsafe bytes
    self.first = first
    self.count = count
    self.isExtended = isExtended
  }

  /// Entries that can be changed.
  @inline(__always) init(of slice: CachedSlice, first: Int, count: Int, isExtended: Bool) {
    unsafe self.init(bytes: slice.bytes, first: first, count: count, isExtended: isExtended)
    self.slice = slice
  }

  @inline(__always) subscript(index: Int) -> ClusterEntry {
    if !isExtended { return unsafe ClusterEntry(L2Entry(raw: bytes.be64((first &+ index) &* 8))) }
    let position = (first &+ index) &* 16
    return unsafe ClusterEntry(
      L2Entry(raw: bytes.be64(position)), SubclusterBitmap(raw: bytes.be64(position &+ 8)))
  }

  private mutating func store(_ entry: ClusterEntry, at index: Int) {
    assert(index >= 0 && index < count, "an entry outside of the held part is changed")
    if isExtended {
      storeExtended(entry, at: index)
    } else {
      store(entry.descriptor.raw, (first &+ index) &* 8)
    }
  }

  @inline(__always) private mutating func store(_ word: UInt64, _ position: Int) {
    assert(slice != nil, "an entry is changed that is only to be looked at")
    slice?.storeBE64(word, position)
  }

  /// Stores the halves that differ; if both do, by way of a bitmap that is right for both descriptors.
  private mutating func storeExtended(_ new: ClusterEntry, at index: Int) {
    let position = (first &+ index) &* 16
    let old = self[index]
    if old.descriptor == new.descriptor { return store(new.bitmap.raw, position &+ 8) }
    let between = SplitEntries.bitmap(from: old, to: new)
    if between != old.bitmap { store(between.raw, position &+ 8) }
    store(new.descriptor.raw, position)
    if between != new.bitmap { store(new.bitmap.raw, position &+ 8) }
  }

  /// Makes the entry at `index` say `new`: the only way that the mapping of a cluster changes.
  ///
  /// The caller holds the guest cluster in ``InFlightRanges``. What the new entry leads to has its
  /// refcount and its data already; what only the old one led to must be given to ``DeferredFrees``
  /// afterwards.
  ///
  /// - Parameters:
  ///   - index: of the entry in the part.
  ///   - new: what it says from now on.
  ///   - lookup: the image's.
  ///   - released: gets one run for each reference that the old entry counted and the new one does not.
  mutating func link(
    _ index: Int, to new: ClusterEntry, _ lookup: Lookup, released: inout [ClusterRun]
  ) {
    let old = self[index]
    if new == old { return }
    assert(
      lookup.rules.hostCluster(new).map { !lookup.holdsMetadata($0) } ?? true,
      "an entry is to lead to metadata")
    // Most entries that change led nowhere.
    if old.descriptor.raw & (EntryBits.offset | EntryBits.compressed) != 0 {
      lookup.noteReleased(old, replacedBy: new, &released)
    }
    store(new, at: index)
  }
}

extension Lookup {
  /// Adds what `old` refers to and `new` does not.
  fileprivate func noteReleased(
    _ old: ClusterEntry, replacedBy new: ClusterEntry, _ released: inout [ClusterRun]
  ) {
    let geometry = rules.geometry
    if old.descriptor.kind(hasZeroFlag: false) == .compressed {
      let clusters = CompressedDescriptor(old.descriptor, geometry).hostClusters(geometry)
      released.append(
        ClusterRun(start: clusters.lowerBound, count: UInt64(clusters.count), isFresh: false))
      return
    }
    // Clusters of an external data file have no refcounts.
    guard !rules.hasDataFile, let host = rules.hostCluster(old), rules.hostCluster(new) != host
    else { return }
    let cluster = geometry.hostCluster(of: host)
    if let last = released.last, last.end == cluster {
      released[released.count - 1].count += 1
    } else {
      released.append(ClusterRun(start: cluster, count: 1, isFresh: false))
    }
  }
}
