import BlockCore
import QCOW2Format
import TestSupport
import TestTools
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

  @Test("A flush changes one half of an entry at most between two barriers")
  func oneHalfBetweenBarriers() throws {
    var builder = ImageBuilder()
    builder.clusterBits = 14
    builder.size = 1 << 20
    builder.features.isExtended = true
    builder.features.backing = .equal
    builder.mappings = [
      0: .data, 1: .subclusters(allocated: 0xf0, zero: 0xf, hasHost: true), 2: .zero,
      3: .compressed, 4: .data, 5: .compressed,
    ]
    let bench = Bench(builder, schedule: nil, isImmediate: true)
    try bench.host.run {
      let image = try await bench.open()
      let driver = MiniWorker(target: image, files: bench.files, worker: 0)
      for cluster in [1, 2, 3, 8, 9] {
        #expect(await bench.write((cluster * 32 + 5)..<(cluster * 32 + 7), by: driver) == nil)
      }
      for (operation, cluster) in [(BlockOperation.discard, 0), (.writeZeroes, 4), (.discard, 5)] {
        let request = BlockRequest(
          operation, offset: GuestOffset(UInt64(cluster) << 14), length: 1 << 14)
        #expect(await driver.perform(request, slot: 0) == nil)
      }
      try await image.flush()
    }
    let table = Int(bench.original.be64(Int(bench.original.be64(40))) & 0x00ff_ffff_ffff_fe00)
    // Entries of which both halves have changed since the last barrier.
    func changedInBoth(_ old: ImageBytes, _ new: ImageBytes) -> [Int] {
      stride(from: table, to: table + 1 << 14, by: 16).filter { at in
        old.be64(at) != new.be64(at) && old.be64(at + 8) != new.be64(at + 8)
      }
    }
    let durable = bench.original.copy()
    let now = bench.original.copy()
    for event in bench.recording.events where event.file == 0 {
      if event.kind == .sync { durable.assign(now) }
      if event.kind == .write { now.put(event.data, Int(event.offset)) }
      #expect(changedInBoth(durable, now).isEmpty, "\(event.kind) at \(event.offset)")
    }
    #expect(changedInBoth(bench.original, now).count >= 5)
  }
}
