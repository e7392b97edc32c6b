import BlockCore
import QCOW2Format

/// What maps a request inside one plain cluster, gathered so that a few loads find it.
///
/// Most requests are such. Whatever is not, in whatever way, is left to ``Image/plan(_:at:into:)``'s
/// general part, which says the same of them, only slower: it asks ``Lookup``.
///
/// A class, so that each constant is loaded where it is used: as a struct they were all loaded first,
/// and most of them spilled.
final class HitMap: Sendable {
  /// Reads of plain clusters are mapped here: standard entries, in a file that transfers can name.
  let plansReads: Bool
  /// The same for writes in place; whether bitmaps have to be told of them is the gate's to say.
  let plansWrites: Bool
  let file: UInt8
  private let clusterBits: UInt64
  private let clusterMask: UInt64
  private let l1Shift: UInt64
  private let indexMask: UInt64
  /// The bits of an entry of L1 or L2 that an aligned offset leaves clear.
  private let flagMask: UInt64
  private let l1: ActiveL1
  private let cache: SliceCache
  private let metadata: MetadataMap
  private let lookup: Lookup

  init(_ mapping: Mapping, planFile: Int, allowsWrites: Bool) {
    let rules = mapping.rules
    let geometry = mapping.geometry
    plansReads = !rules.isExtended && !rules.hasDataFile && (0..<256).contains(planFile)
    plansWrites = plansReads && allowsWrites
    file = UInt8(truncatingIfNeeded: planFile)
    clusterBits = UInt64(geometry.clusterBits)
    clusterMask = geometry.clusterMask
    l1Shift = UInt64(geometry.clusterBits + geometry.l2Bits)
    indexMask = geometry.l2Entries - 1
    flagMask = geometry.bitsBesideOffset
    l1 = mapping.tables.l1
    cache = mapping.cache
    lookup = mapping.lookup
    metadata = lookup.metadata
  }

  /// Where the host file has the guest bytes; 0 if the general part must say, out of bounds included.
  ///
  /// For a write, only if they may be written in place: COPIED at both levels, and no metadata there.
  @inline(__always) func host(
    _ offset: UInt64, _ length: UInt64, isWrite: Bool, size: UInt64
  ) -> UInt64 {
    let inCluster = offset & clusterMask
    // Length 0 wraps, and is too long then. What fits into a cluster ends at 2^64 at most, and so
    // does not wrap below the size.
    guard length &- 1 <= clusterMask &- inCluster, offset &+ length &- 1 < size,
      (offset | length) & 511 == 0
    else { return 0 }
    let l1Entry = l1.load(Int(truncatingIfNeeded: offset &>> l1Shift))
    let table = place(l1Entry, mustBeCopied: isWrite)
    guard table & flagMask == 0 else { return 0 }
    let index = (offset &>> clusterBits & indexMask) &<< 3
    // No table lies at offset 0, so no slice of it is resident, and 0 is what is found there.
    let entry = cache.residentWord(table &+ index)
    let host = place(entry, mustBeCopied: isWrite)
    guard host & flagMask == 0, host != 0 else { return 0 }
    if isWrite && metadata.contains(HostCluster(host &>> clusterBits)) { return 0 }
    assert(
      agrees(offset, length, L1Entry(raw: l1Entry), L2Entry(raw: entry), isWrite, host | inCluster),
      "the fast look at an entry says what the general one does not")
    return host | inCluster
  }

  /// Whether ``Lookup`` says the same of the same two entries.
  private func agrees(
    _ offset: UInt64, _ length: UInt64, _ l1: L1Entry, _ entry: L2Entry, _ isWrite: Bool,
    _ host: UInt64
  ) -> Bool {
    guard case .at(_, let isOwn) = l1.place(lookup.rules.geometry), isOwn || !isWrite else {
      return false
    }
    let found = lookup.inCluster(
      ClusterEntry(entry), at: GuestOffset(offset), upTo: length, isExtended: false,
      forWriting: isWrite)
    return found
      == Found(kind: isWrite ? .inPlace : .data, host: HostOffset(host), length: length)
  }

  /// The offset of an entry whose COPIED is as it may be or must be; with a bit of `flagMask` if not.
  @inline(__always) private func place(_ entry: UInt64, mustBeCopied: Bool) -> UInt64 {
    mustBeCopied ? entry ^ EntryBits.copied : entry & ~EntryBits.copied
  }
}
