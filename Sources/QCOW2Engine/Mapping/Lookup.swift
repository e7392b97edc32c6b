import BlockCore
import QCOW2Format

/// What the first bytes of a guest range are mapped to.
struct Found: Equatable, Sendable {
  enum Kind: UInt8, Sendable {
    /// Data in a cluster of our own, with no metadata there: may be overwritten where it is.
    ///
    /// Found for writers only, in a table that is our own, too.
    case inPlace
    /// Data; a writer, who is told so of shared clusters alone, must take another one.
    case data
    case zero
    /// Not in this image: what the backing file has, or zeros.
    case unallocated
    /// Inside one compressed cluster.
    case compressed
    /// The entry breaks the format, or a writer would overwrite metadata.
    case other
  }

  var kind: Kind
  /// Where the first byte is; 0 unless `kind` is `inPlace` or `data`.
  var host = HostOffset(0)
  /// How many bytes from there on are alike; at least 1, unless `kind` is `other`.
  var length: UInt64
}

/// The one look at what L2 entries say of a guest range.
///
/// All who read or change the mapping ask here. ``HitMap`` answers the commonest case faster; debug
/// builds assert that both agree.
final class Lookup: Sendable {
  let rules: EntryRules
  let metadata: MetadataMap

  init(rules: EntryRules, metadata: MetadataMap) {
    self.rules = rules
    self.metadata = metadata
  }

  /// What guest bytes from `guest` on are, up to the end of their cluster at most.
  ///
  /// - Parameters:
  ///   - entry: of the cluster that `guest` lies in.
  ///   - guest: where the range begins.
  ///   - limit: the bytes of the range, at least 1.
  ///   - isExtended: the rules' `isExtended`, as a constant where the caller can give one.
  ///   - forWriting: whether to tell ``Found/Kind/inPlace`` from ``Found/Kind/data``.
  /// - Returns: what lies at `guest`, with a length of at most `limit`.
  @inline(__always) func inCluster(
    _ entry: ClusterEntry, at guest: GuestOffset, upTo limit: UInt64, isExtended: Bool,
    forWriting: Bool
  ) -> Found {
    let within = guest.bytes & rules.geometry.clusterMask
    guard isExtended else {
      let length = min(rules.geometry.clusterSize &- within, limit)
      return found(rules.state(entry.descriptor), entry, guest, within, length, forWriting)
    }
    let bits = UInt64(rules.subclusterBits)
    let (state, count) = rules.run(entry, from: Int(within >> bits))
    let end = ((within >> bits) &+ UInt64(count)) << bits
    return found(state, entry, guest, within, min(end &- within, limit), forWriting)
  }

  @inline(__always) private func found(
    _ state: SubclusterState, _ entry: ClusterEntry, _ guest: GuestOffset, _ within: UInt64,
    _ length: UInt64, _ forWriting: Bool
  ) -> Found {
    switch state {
    case .data:
      guard let host = rules.hostCluster(entry), rules.isPlaced(host, guest) else { break }
      if !forWriting || !entry.descriptor.isCopied {
        return Found(kind: .data, host: host + within, length: length)
      }
      if holdsMetadata(host) { break }
      return Found(kind: .inPlace, host: host + within, length: length)
    case .zero: return Found(kind: .zero, length: length)
    case .unallocated: return Found(kind: .unallocated, length: length)
    case .compressed: return Found(kind: .compressed, length: length)
    case .invalid: break
    }
    return Found(kind: .other, length: 0)
  }

  /// What the first bytes of a part of a slice are, across clusters; what is alike may go on in the next
  /// slice.
  func first(_ part: SlicePart, _ entries: SliceEntries, forWriting: Bool) -> Found {
    var all = found(entries[0], at: part.start, upTo: part.length, forWriting)
    if all.kind == .compressed || all.kind == .other { return all }
    var index = 1
    while all.length < part.length {
      let next = part.start + all.length
      // Elsewhere than at a cluster's start, the next subcluster is of another kind.
      if next.bytes & rules.geometry.clusterMask != 0 { break }
      let more = found(entries[index], at: next, upTo: part.length - all.length, forWriting)
      let isData = all.kind == .data || all.kind == .inPlace
      if more.kind != all.kind || isData && more.host != all.host + all.length { break }
      all.length += more.length
      index += 1
    }
    return all
  }

  private func found(
    _ entry: ClusterEntry, at guest: GuestOffset, upTo limit: UInt64, _ forWriting: Bool
  ) -> Found {
    inCluster(
      entry, at: guest, upTo: limit, isExtended: rules.isExtended, forWriting: forWriting)
  }

  // MARK: Whole clusters

  /// Whether an entry of the image file leads to a cluster that holds metadata.
  @inline(__always) func holdsMetadata(_ host: HostOffset) -> Bool {
    !rules.hasDataFile && metadata.contains(rules.geometry.hostCluster(of: host))
  }

  /// The host cluster of an entry if it is ours alone (COPIED), whatever the subclusters say; nil if
  /// there is none or it is shared.
  func ownCluster(_ entry: ClusterEntry) -> HostOffset? {
    entry.descriptor.isCopied ? rules.hostCluster(entry) : nil
  }

  /// Whether the entry of a guest cluster keeps to the format, all of its subclusters included.
  func isUsable(_ entry: ClusterEntry, of cluster: GuestCluster) -> Bool {
    rules.problem(entry, at: rules.geometry.start(of: cluster)) == nil
  }
}
