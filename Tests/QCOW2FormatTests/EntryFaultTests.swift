import BlockCore
import QCOW2Format
import Testing

/// Every bit of an entry, alone, with an aligned offset and with COPIED.
private let words: [UInt64] = {
  let bits = (0..<64).map { UInt64(1) << UInt64($0) }
  return [0] + bits + bits.map { $0 | 1 << 16 } + bits.map { $0 | 1 << 63 }
}()

private let copied: UInt64 = 1 << 63
private let compressed: UInt64 = 1 << 62

@Suite("What is wrong with an entry") struct EntryFaultTests {
  private let geometry = ClusterGeometry(clusterBits: 16, refcountOrder: 4)

  private func rules(
    version: UInt32 = 3, _ features: IncompatibleFeatures = []
  ) -> EntryRules {
    var header = Header(version: version, clusterBits: 16, size: 1 << 30)
    header.incompatible = features
    return EntryRules(header)
  }

  @Test("An L1 entry has an offset and COPIED, and nothing else")
  func l1() {
    for raw in words {
      let entry = L1Entry(raw: raw)
      let faults = entry.faults(geometry, fileLength: 1 << 40)
      let place = raw & 0x00ff_ffff_ffff_fe00
      #expect(faults.contains(.reservedBits) == (raw & 0x7f00_0000_0000_01ff != 0))
      #expect(faults.contains(.unaligned) == (place & 0xffff != 0))
      #expect(faults.contains(.beyondEnd) == (place >= 1 << 40))
      #expect(!entry.faults(geometry).contains(.beyondEnd))
      #expect(entry.leadsBeyond(1 << 40) == (place >= 1 << 40))
      let isUsable = faults.isDisjoint(with: [.reservedBits, .unaligned]) && place != 0
      #expect(entry.place(geometry).table?.bytes == (isUsable ? place : nil))
      if isUsable {
        #expect(entry.place(geometry) == .at(HostOffset(place), isOwn: raw & copied != 0))
      } else {
        #expect(entry.place(geometry) == (raw & ~copied == 0 ? .missing : .unusable))
      }
      #expect(entry.copied(true).raw == raw | copied)
      #expect(entry.copied(false).raw == raw & ~copied)
    }
  }

  @Test("A table that cannot be used has a problem; marks tell first of the file's end")
  func l1Problem() {
    let cases: [(L1Entry, OffsetProblem?)] = [
      (L1Entry(raw: 0), nil), (L1Entry(raw: 0x10000), nil), (L1Entry(raw: copied | 0x10000), nil),
      (L1Entry(raw: 0x10000).unusable, .beyondEnd), (L1Entry.unallocated.unusable, .missing),
      (L1Entry(raw: 0x10200).unusable, .beyondEnd), (L1Entry(raw: 0x10001), .reservedBits),
      (L1Entry(raw: 0x10201), .reservedBits), (L1Entry(raw: 0x10200), .unaligned),
      (L1Entry(raw: compressed | 0x10000), .reservedBits),
    ]
    for (entry, problem) in cases { #expect(entry.problem(geometry) == problem) }
  }

  @Test("A refcount table entry has an offset, up to the highest bit, and nothing else")
  func refcountTable() {
    for raw in words {
      let faults = RefcountTableEntry(raw: raw).faults(geometry, fileLength: 1 << 40)
      #expect(faults.contains(.reservedBits) == (raw & 0x1ff != 0))
      #expect(faults.contains(.unaligned) == (raw & 0xfe00 != 0))
      #expect(faults.contains(.beyondEnd) == (raw & ~0x1ff >= 1 << 40))
    }
  }

  @Test("Bit 0 of a descriptor is the zero flag or reserved; a compressed one is not judged")
  func descriptor() {
    let all: [(EntryRules, hasZeroFlag: Bool)] = [
      (rules(), true), (rules(version: 2), false), (rules(.extendedL2), false),
    ]
    for (rules, hasZeroFlag) in all {
      for raw in words {
        let faults = rules.faults(L2Entry(raw: raw), fileLength: 1 << 40)
        if raw & compressed != 0 {
          #expect(faults.isEmpty)
          continue
        }
        let reserved: UInt64 = 0x3f00_0000_0000_01fe | (hasZeroFlag ? 0 : 1)
        let place = raw & 0x00ff_ffff_ffff_fe00
        #expect(faults.contains(.reservedBits) == (raw & reserved != 0))
        #expect(faults.contains(.unaligned) == (place & 0xffff != 0))
        #expect(faults.contains(.beyondEnd) == (place >= 1 << 40))
        #expect(!rules.faults(L2Entry(raw: raw)).contains(.beyondEnd))
      }
    }
    let external = rules(.externalDataFile)
    #expect(external.faults(L2Entry(raw: 1 << 50), fileLength: 1 << 40).isEmpty)
  }

  @Test("The first fault is the one that messages name")
  func first() {
    #expect(EntryFaults().first == nil)
    #expect(EntryFaults.beyondEnd.first == .beyondEnd)
    #expect(EntryFaults([.beyondEnd, .unaligned]).first == .unaligned)
    #expect(EntryFaults([.beyondEnd, .unaligned, .reservedBits]).first == .reservedBits)
  }

  @Test("An entry can be used if its cluster is at a cluster, or at the guest's own offset")
  func problem() {
    let guest = GuestOffset(0x30000 + 0x1234)
    func problem(_ rules: EntryRules, _ raw: UInt64, _ bitmap: UInt64 = 0) -> OffsetProblem? {
      rules.problem(ClusterEntry(L2Entry(raw: raw), SubclusterBitmap(raw: bitmap)), at: guest)
    }
    for rules in [rules(), rules(version: 2)] {
      #expect(problem(rules, 0) == nil && problem(rules, copied) == nil)
      #expect(problem(rules, 0x50000) == nil && problem(rules, 0x50200) == .unaligned)
      #expect(problem(rules, 0x50001) == nil && problem(rules, compressed | 0x50201) == nil)
      #expect(rules.isPlaced(HostOffset(0x50000), guest))
      #expect(!rules.isPlaced(HostOffset(0x50200), guest))
    }
    let external = rules(.externalDataFile)
    #expect(problem(external, 0) == nil && problem(external, copied) == .notAtGuestOffset)
    #expect(problem(external, 0x30000) == nil && problem(external, 0x50000) == .notAtGuestOffset)
    #expect(problem(external, 0x50200) == .unaligned)
    #expect(problem(external, compressed | 0x30000) == .compressedWithDataFile)
    #expect(external.isPlaced(HostOffset(0x30000), guest))
    #expect(!external.isPlaced(HostOffset(0x50000), guest))
    let extended = rules(.extendedL2)
    #expect(problem(extended, 0x50000, 1) == nil && problem(extended, 0, 1 << 32) == nil)
    #expect(problem(extended, 0, 1) == .zero && problem(extended, 0x50200, 1) == .unaligned)
    #expect(problem(extended, 0x50200, 1 << 32 | 1) == .allocatedAndZero)
    #expect(problem(extended, compressed, 1 << 32 | 1) == nil)
    let both = rules([.extendedL2, .externalDataFile])
    #expect(problem(both, compressed) == .compressedWithDataFile)
    #expect(problem(both, compressed, 1 << 32 | 1) == .allocatedAndZero)
    #expect(problem(both, copied, 1) == .notAtGuestOffset)
  }

  @Test("What can be used is what no subcluster finds invalid, and lies in its place")
  func usableIsWhatCanBeRead() {
    let places: [UInt64] = [0, 0x30000, 0x50000, 0x50200, compressed | 0x50000]
    let bitmaps: [UInt64] = [0, 1, 1 << 32, 1 << 31, 1 << 63 | 1 << 31, 0xff << 32 | 0xff00]
    let features: [IncompatibleFeatures] = [
      [], .extendedL2, .externalDataFile, [.extendedL2, .externalDataFile],
    ]
    let guest = GuestOffset(0x30000)
    for rules in features.map({ rules($0) }) + [rules(version: 2)] {
      for raw in places.flatMap({ [$0, $0 | 1, $0 | copied] }) {
        for bitmap in rules.isExtended ? bitmaps : [0] {
          let entry = ClusterEntry(L2Entry(raw: raw), SubclusterBitmap(raw: bitmap))
          let isPlaced = rules.hostCluster(entry).map { rules.isPlaced($0, guest) } ?? true
          let isValid = (0..<rules.subclusters).allSatisfy {
            rules.run(entry, from: $0).state != .invalid
          }
          #expect((rules.problem(entry, at: guest) == nil) == (isPlaced && isValid))
        }
      }
    }
  }
}
