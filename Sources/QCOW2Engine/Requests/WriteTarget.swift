import BlockCore
import QCOW2Format

/// What a write may do with the first clusters of its range.
enum WriteTarget: Sendable {
  /// The guest's data lies at a host offset and may be overwritten there.
  case inPlace(HostOffset, length: UInt64)
  /// One cluster whose host cluster is ours alone, but some subclusters written have no data yet:
  /// fill them, then change the entry.
  case fill(HostOffset, old: ClusterEntry)
  /// Clusters that need new host clusters; the old entries of the first and last.
  case allocate(clusters: Int, first: ClusterEntry, last: ClusterEntry)
  /// The first entry breaks the format.
  case invalid(ClusterEntry)
}

extension Image {
  /// Decides for the first entries of a part; all that a target covers are of the same sort.
  func target(_ part: SlicePart, _ entries: SliceEntries) -> WriteTarget {
    let first = entries[0]
    let cluster = part.clusters.lowerBound
    guard isUsable(first, of: cluster) else { return .invalid(first) }
    guard let host = ownCluster(first) else {
      var count = 1
      while count < entries.count && ownCluster(entries[count]) == nil
        && isUsable(entries[count], of: cluster + UInt64(count))
      { count += 1 }
      return .allocate(clusters: count, first: first, last: entries[count - 1])
    }
    let length = inPlaceLength(part, entries, host)
    return length > 0
      ? .inPlace(host + part.start.bytes & geometry.clusterMask, length: length)
      : .fill(host, old: first)
  }

  /// The host cluster that an entry may change in place; nil if there is none or it is shared.
  private func ownCluster(_ entry: ClusterEntry) -> HostOffset? {
    entry.descriptor.isCopied ? rules.hostCluster(entry) : nil
  }

  /// Whether the entry of a guest cluster keeps to the format, all of its subclusters included.
  func isUsable(_ entry: ClusterEntry, of cluster: UInt64) -> Bool {
    rules.problem(entry, at: geometry.start(ofGuestCluster: cluster)) == nil
  }

  /// The bytes from the start of `part` on that are data in contiguous clusters of our own.
  private func inPlaceLength(
    _ part: SlicePart, _ entries: SliceEntries, _ host: HostOffset
  ) -> UInt64 {
    let length = run(part, entries, .data, host)
    let inCluster = part.start.bytes & geometry.clusterMask
    var own = geometry.clusterSize - inCluster
    var index = 1
    while own < length && entries[index].descriptor.isCopied {
      own += geometry.clusterSize
      index += 1
    }
    return min(length, own)
  }
}
