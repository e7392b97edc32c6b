import BlockCore
import QCOW2Format

/// What maps a request inside one plain cluster, gathered so that a few loads find it.
///
/// Most requests are such. Whatever is not, in whatever way, is left to ``Image/plan(_:worker:slot:into:)``'s
/// general part, which says the same of them, only slower.
struct HitMap {
  /// Standard entries, in a file that transfers can name.
  let isUsable: Bool
  /// Writes may go in place, as far as it is known at opening.
  let allowsWrites: Bool
  let file: UInt8
  private let clusterBits: UInt64
  private let clusterMask: UInt64
  private let l1Shift: UInt64
  private let indexMask: UInt64
  /// The bits of an entry of L1 or L2 that hold an aligned offset.
  private let offsetMask: UInt64
  private static let copied: UInt64 = 1 << 63

  init(_ rules: EntryRules, _ options: ImageOptions, planFile: Int) {
    let geometry = rules.geometry
    allowsWrites = !options.readOnly && !options.compressesWrites
    isUsable = !rules.isExtended && !rules.hasDataFile && (0..<256).contains(planFile)
    file = UInt8(truncatingIfNeeded: planFile)
    clusterBits = UInt64(geometry.clusterBits)
    clusterMask = geometry.clusterMask
    l1Shift = UInt64(geometry.clusterBits + geometry.l2Bits)
    indexMask = geometry.l2Entries - 1
    offsetMask = 0x00ff_ffff_ffff_fe00 & ~geometry.clusterMask
  }

  /// Where the host file has the guest bytes; 0 if the general part must say.
  ///
  /// For a write, only if they may be written in place: COPIED at both levels, and no metadata there.
  @inline(__always) func host(
    _ offset: UInt64, _ length: UInt64, isWrite: Bool, _ tables: L2Tables, _ metadata: MetadataMap
  ) -> UInt64 {
    let inCluster = offset & clusterMask
    // Length 0 wraps, and is too long then.
    guard length &- 1 <= clusterMask &- inCluster else { return 0 }
    let needed = isWrite ? Self.copied : 0
    let table = tables.l1.load(Int(truncatingIfNeeded: offset &>> l1Shift))
    guard isPlain(table), table & needed == needed else { return 0 }
    let index = (offset &>> clusterBits & indexMask) &<< 3
    let entry = tables.cache.residentWord((table & offsetMask) &+ index)
    guard isPlain(entry), entry & needed == needed else { return 0 }
    let host = entry & offsetMask
    if isWrite && metadata.contains(host &>> clusterBits) { return 0 }
    return host | inCluster
  }

  /// An aligned offset that is not 0, and no other flag than COPIED.
  @inline(__always) private func isPlain(_ entry: UInt64) -> Bool {
    entry & ~(offsetMask | Self.copied) == 0 && entry & offsetMask != 0
  }
}
