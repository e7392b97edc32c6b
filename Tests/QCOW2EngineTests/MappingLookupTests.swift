import BlockCore
import Glibc
import QCOW2Format
import TestSupport
import TestTools
import Testing

@testable import QCOW2Engine

/// The one look at entries, against a model that judges one sector at a time.
@Suite struct MappingLookupTests {
  enum Shape: String, CaseIterable, Sendable { case version2, version3, extended, dataFile }

  private static let clusterBits = 14
  private static let clusterSize: UInt64 = 1 << 14
  /// Entries of the slice.
  private static let count = 64
  /// A host cluster that holds a table; 0, 1 and 2 hold metadata, too.
  private static let metadataCluster: UInt64 = 9

  private static func rules(_ shape: Shape) -> EntryRules {
    var header = Header(
      version: shape == .version2 ? 2 : 3, clusterBits: clusterBits, size: 1 << 30)
    if shape == .extended { header.incompatible = .extendedL2 }
    if shape == .dataFile { header.incompatible = .externalDataFile }
    return EntryRules(header)
  }

  private static func lookup(_ shape: Shape) throws -> Lookup {
    let metadata = try MetadataMap(
      fixed: [0..<1], refcountTable: 1..<2, l1Table: 2..<3, expectedTables: 16)
    metadata.tables.insert(HostCluster(metadataCluster))
    return Lookup(rules: rules(shape), metadata: metadata)
  }

  // MARK: The model

  /// What one sector is, and where; judged from the specification's text, bit by bit.
  private static func sector(
    _ entry: ClusterEntry, at guest: UInt64, _ shape: Shape, forWriting: Bool
  ) -> Found {
    let raw = entry.descriptor.raw
    let (copied, compressed) = (raw >> 63 & 1 == 1, raw >> 62 & 1 == 1)
    let (within, cluster) = (guest % clusterSize, guest / clusterSize)
    let other = Found(kind: .other, length: 0)
    if compressed {
      return shape == .dataFile ? other : Found(kind: .compressed, length: 512)
    }
    let place = raw & 0x00ff_ffff_ffff_fe00
    let hasPlace = place != 0 || shape == .dataFile && copied
    if shape == .extended {
      let bit = UInt32(within / (clusterSize / 32))
      let (allocated, zero) = (entry.bitmap.raw & 0xffff_ffff, entry.bitmap.raw >> 32)
      if allocated & zero != 0 { return other }
      if zero >> bit & 1 == 1 { return Found(kind: .zero, length: 512) }
      if allocated >> bit & 1 == 0 { return Found(kind: .unallocated, length: 512) }
      if !hasPlace { return other }
    } else {
      if shape != .version2 && raw & 1 == 1 { return Found(kind: .zero, length: 512) }
      if !hasPlace { return Found(kind: .unallocated, length: 512) }
    }
    let wanted = shape == .dataFile ? cluster * clusterSize : place / clusterSize * clusterSize
    if place != wanted { return other }
    let isOwn = forWriting && copied
    if isOwn && shape != .dataFile && [0, 1, 2, metadataCluster].contains(place / clusterSize) {
      return other
    }
    return Found(
      kind: isOwn ? .inPlace : .data, host: HostOffset(place + within), length: 512)
  }

  /// Entries of which neighbours are often alike.
  private static func entries(_ shape: Shape, _ random: inout SeededGenerator) -> [ClusterEntry] {
    var previous = ClusterEntry(.unallocated)
    return (0..<count).map { index in
      if random.chance(50) {
        // The next host cluster, or the same kind of nothing.
        let place = previous.descriptor.raw & EntryBits.offset
        let isPlain = previous.descriptor.raw & EntryBits.compressed == 0
        let step = place != 0 && isPlain ? clusterSize : 0
        previous.descriptor = L2Entry(raw: previous.descriptor.raw &+ step)
      } else {
        previous = entry(shape, index, &random)
      }
      return previous
    }
  }

  private static func entry(
    _ shape: Shape, _ index: Int, _ random: inout SeededGenerator
  ) -> ClusterEntry {
    var raw: UInt64 = 0
    switch random.below(6) {
    case 0: break
    case 1: raw = EntryBits.compressed | random.next() & 0xffff_ffff
    case 2: raw = (UInt64(random.below(3)) + 8) * clusterSize
    case 3: raw = UInt64(index) * clusterSize
    case 4: raw = (UInt64(random.below(30)) + 20) * clusterSize + UInt64(random.below(2)) * 512
    default: raw = UInt64(random.below(2)) * clusterSize
    }
    if random.chance(60) && raw & EntryBits.compressed == 0 { raw |= EntryBits.copied }
    if random.chance(20) && shape == .version3 { raw |= EntryBits.zero }
    let masks: [UInt64] = [0, 0xffff_ffff, 0xffff_ffff << 32, 0x00ff_ff00 << 32, 0xf0f0, 0xff]
    let bitmap = masks[random.below(masks.count)] | masks[random.below(masks.count)]
    return ClusterEntry(
      L2Entry(raw: raw), SubclusterBitmap(raw: shape == .extended ? bitmap : 0))
  }

  // MARK: The tests

  /// Calls `body` with a way to look at `count` entries of a slice from one on, and to change them.
  ///
  /// - Returns: whether the slice became dirty.
  @discardableResult
  private static func withSlice(
    _ entries: [ClusterEntry], _ shape: Shape,
    _ body: (_ view: (_ first: Int, _ count: Int) -> SliceEntries) -> Void
  ) throws(ImageError) -> Bool {
    let size = shape == .extended ? 16 : 8
    var sliceSize = 512
    while sliceSize < entries.count * size { sliceSize *= 2 }
    let cache = try SliceCache(sliceSize: sliceSize, slots: 1)
    let key = HostOffset(1 << 20)
    cache.insertZeroes(key)
    for (index, entry) in entries.enumerated() {
      cache.slices.base.storeBE64(entry.descriptor.raw, index * size)
      if size == 16 { cache.slices.base.storeBE64(entry.bitmap.raw, index * size + 8) }
    }
    _ = cache.changeResident(key) { slice in
      body { first, count in
        SliceEntries(of: slice, first: first, count: count, isExtended: shape == .extended)
      }
    }
    return cache.dirtyCount > 0
  }

  @Test(
    "A look finds the longest run of what one sector after another is", arguments: Shape.allCases)
  func runs(shape: Shape) throws {
    let seed = getenv("QUBLK_SEED").flatMap { UInt64(String(cString: $0)) } ?? 1
    var random = SeededGenerator(seed: seed)
    let lookup = try Self.lookup(shape)
    let slices = SliceGeometry(
      cluster: lookup.rules.geometry, sliceSize: Self.count * lookup.rules.entrySize)
    for _ in 0..<60 {
      let entries = Self.entries(shape, &random)
      let parts = (0..<20).map { _ in
        let start = UInt64(random.below(Self.count * Int(Self.clusterSize) / 512)) * 512
        return slices.part(
          from: GuestOffset(start), length: UInt64(random.below(200) + 1) * 512)
      }
      try Self.withSlice(entries, shape) { view in
        for part in parts {
          for forWriting in [false, true] {
            let found = lookup.first(
              part, view(part.firstEntry, part.clusters.count), forWriting: forWriting)
            #expect(
              found == Self.longest(part, entries, shape, forWriting: forWriting),
              "\(shape) at \(part.start.bytes), \(part.length) bytes, seed \(seed)")
          }
        }
      }
    }
  }

  /// What the model says of the start of a part, as far as it is alike.
  private static func longest(
    _ part: SlicePart, _ entries: [ClusterEntry], _ shape: Shape, forWriting: Bool
  ) -> Found {
    func at(_ guest: UInt64) -> Found {
      sector(entries[Int(guest / clusterSize)], at: guest, shape, forWriting: forWriting)
    }
    var all = at(part.start.bytes)
    if all.kind == .other { return all }
    while all.length < part.length {
      let next = part.start.bytes + all.length
      if all.kind == .compressed && next % clusterSize == 0 { break }
      let more = at(next)
      let hasHost = all.kind == .data || all.kind == .inPlace
      if more.kind != all.kind || hasHost && more.host != all.host + all.length { break }
      all.length += 512
    }
    return all
  }

  @Test("A link changes one entry, and releases what only the old one refers to")
  func links() throws {
    let lookup = try Self.lookup(.version3)
    let host = { (cluster: UInt64) in HostOffset(cluster * Self.clusterSize) }
    let data = { (cluster: UInt64) in lookup.rules.entry(host: host(cluster), allocated: 0, zero: 0)
    }
    let old = [data(20), data(21), ClusterEntry(.unallocated), data(30), data(31)]
    let isChanged = try Self.withSlice(old, .version3) { slice in
      var view = slice(0, 5)
      var released: [ClusterRun] = []
      view.link(3, to: data(30), lookup, released: &released)
      #expect(released.isEmpty)
    }
    #expect(!isChanged, "the same entry is no change")
    let isDirty = try Self.withSlice(old, .version3) { slice in
      var view = slice(0, 5)
      var released: [ClusterRun] = []
      view.link(0, to: data(40), lookup, released: &released)
      view.link(1, to: ClusterEntry(.zero), lookup, released: &released)
      view.link(2, to: data(41), lookup, released: &released)
      // Reads as zeros from now on, and keeps its cluster.
      view.link(3, to: ClusterEntry(old[3].descriptor.zeroed), lookup, released: &released)
      #expect(released.map(\.start) == [20] && released.map(\.count) == [2])
      #expect(
        (0..<5).map { view[$0] } == [
          data(40), ClusterEntry(.zero), data(41), ClusterEntry(old[3].descriptor.zeroed), data(31),
        ])
    }
    #expect(isDirty)
  }

  @Test func nothingIsLinkedToMetadata() async {
    await #expect(processExitsWith: .failure) {
      let lookup = try Self.lookup(.version3)
      let new = lookup.rules.entry(
        host: HostOffset(Self.metadataCluster * Self.clusterSize), allocated: 0, zero: 0)
      try Self.withSlice([ClusterEntry(.unallocated)], .version3) { slice in
        var view = slice(0, 1)
        var released: [ClusterRun] = []
        view.link(0, to: new, lookup, released: &released)
      }
    }
  }
}
