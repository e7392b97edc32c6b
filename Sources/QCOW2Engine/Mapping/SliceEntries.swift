import BlockCore
import QCOW2Format

/// The entries of one ``SlicePart``, in the cache, under the stripe's lock.
@safe
struct SliceEntries {
  private let bytes: UnsafeMutableRawPointer
  private let first: Int
  private let isExtended: Bool
  let count: Int
  private(set) var isChanged = false

  @inline(__always) init(
    bytes: UnsafeMutableRawPointer, first: Int, count: Int, isExtended: Bool
  ) {
    unsafe self.bytes = unsafe bytes
    self.first = first
    self.count = count
    self.isExtended = isExtended
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
      let position = (first &+ index) &* 16
      unsafe bytes.storeBE64(entry.descriptor.raw, position)
      unsafe bytes.storeBE64(entry.bitmap.raw, position &+ 8)
    } else {
      unsafe bytes.storeBE64(entry.descriptor.raw, (first &+ index) &* 8)
    }
    isChanged = true
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
    lookup.noteReleased(old, replacedBy: new, &released)
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
