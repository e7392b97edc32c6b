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
  /// The first entry would have a cluster overwritten that holds metadata.
  case metadata(HostOffset)
}

extension Lookup {
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
    if holdsMetadata(host) { return .metadata(host) }
    let found = self.first(part, entries, forWriting: true)
    return found.kind == .inPlace
      ? .inPlace(found.host, length: found.length) : .fill(host, old: first)
  }
}
