import BlockCore
import QCOW2Format
import TestSupport
import Testing

@testable import QCOW2Engine

/// Extended L2 entries on their way to the host file, half by half [COW-13].
@Suite struct SplitEntriesTests {
  private enum Reads: Equatable {
    case backing, zeros, broken
    case data(UInt64)
    case compressed(UInt64)
  }

  /// What one subcluster reads as, by the specification alone.
  private func reads(_ entry: ClusterEntry, _ index: Int) -> Reads {
    let raw = entry.descriptor.raw
    if raw >> 62 & 1 != 0 { return .compressed(raw) }
    let bit = UInt64(1) << UInt64(index)
    switch (entry.bitmap.raw & bit != 0, entry.bitmap.raw >> 32 & bit != 0) {
    case (true, true): return .broken
    case (false, true): return .zeros
    case (false, false): return .backing
    case (true, false):
      let host = raw & 0x00ff_ffff_ffff_fe00
      return host == 0 ? .broken : .data(host)
    }
  }

  /// An entry that the format allows.
  private func entry(_ random: inout SeededGenerator) -> ClusterEntry {
    let kind = random.below(10)
    if kind == 0 { return ClusterEntry(L2Entry(raw: 1 << 62 | random.next() & 0xffff_ffff)) }
    let dense = random.chance(50)
    var allocated = UInt32(
      truncatingIfNeeded: dense ? random.next() | random.next() : random.next())
    if random.chance(15) { allocated = random.chance(50) ? 0 : .max }
    if kind < 3 { allocated = 0 }
    let zero = UInt32(truncatingIfNeeded: random.next()) & ~allocated
    let host = kind < 3 ? 0 : UInt64(1 + random.below(3)) << 16 | (random.chance(70) ? 1 << 63 : 0)
    return ClusterEntry(L2Entry(raw: host), SubclusterBitmap(allocated: allocated, zero: zero))
  }

  @Test("Each subcluster reads as before or as after in both states between two entries")
  func eachSubclusterReadsAsBeforeOrAsAfter() {
    let seed = testSeed("split entries")
    var random = SeededGenerator(seed: seed)
    for _ in 0..<20_000 {
      let old = entry(&random)
      let new = entry(&random)
      let between = SplitEntries.bitmap(from: old, to: new)
      for descriptor in [old.descriptor, new.descriptor] {
        let state = ClusterEntry(descriptor, between)
        for index in 0..<32 {
          let found = reads(state, index)
          if found == reads(old, index) || found == reads(new, index) { continue }
          Issue.record("seed \(seed): \(old) → \(new): subcluster \(index) reads \(found)")
          return
        }
      }
    }
  }
}
