import BlockCore
import Glibc
import QCOW2Format
import TestSupport
import Testing

@testable import QCOW2Engine

/// The owner of all memory that holds metadata ahead of the host file.
@Suite struct MetadataMemoryTests {
  @Test("The head says what it is, and where each region is")
  func theHead() throws {
    let memory = try MetadataMemory()
    let first = try memory.region(.l2Slices, elementSize: 4096, count: 3)
    let second = try memory.region(
      .l1Table, elementSize: 8, count: 70, length: 1200, place: HostOffset(0x30000))
    let head = memory.head
    #expect(head[0].kind == 2 && head[0].elementSize == 4096 && head[0].count == 3)
    #expect(head[1].kind == 5 && head[1].place == 0x30000 && head[1].length == 1200)
    #expect(head[0].offset == 4096 && head[1].offset == 4096 + 3 * 4096)
    for number in 0..<2 { #expect(head[number].check == head[number].checksum) }
    #expect(memory.address(0) == first.base && memory.address(1) == second.base)
    memory.giveBack(first)
    #expect(head[0].kind == 0 && memory.address(0) == nil)
    // The line is used again, the place in the layout is not.
    _ = try memory.region(.arenas, elementSize: 64, count: 2)
    #expect(head[0].kind == 7 && head[0].offset == 4096 + 4 * 4096)
  }

  @Test("The layout has not changed without its version")
  func theLayout() {
    // Whoever changes a record raises MetadataHead.version, and writes the new numbers here.
    #expect(MetadataHead.version == 1)
    #expect(MemoryLayout<CacheSlot>.stride == 24 && MemoryLayout<RegionRecord>.stride == 48)
    #expect(MetadataHead.layoutChecksum == 13_411_596_025_991_503_226)
    #expect(MetadataHead.capacity == 84)
  }

  @Test("A full head, and a size that no host has, are errors")
  func thereAreLimits() throws {
    let memory = try MetadataMemory()
    for _ in 0..<MetadataHead.capacity {
      _ = try memory.region(.bitmapBits, elementSize: 8, count: 1)
    }
    for (size, count) in [(8, 1), (1 << 40, 1 << 40), (1 << 60, 1), (8, 0)] {
      #expect {
        _ = try memory.region(.bitmapBits, elementSize: size, count: count)
      } throws: { error in
        if case .noMemory = error as? ImageError { true } else { false }
      }
    }
  }

  @Test("What is never used takes no memory")
  func untouchedMemory() throws {
    let memory = try MetadataMemory()
    let region = try memory.region(.l2Slices, elementSize: 4096, count: 1 << 18)
    region.base.storeBytes(of: 1, toByteOffset: 5 * 4096, as: UInt8.self)
    var pages = [UInt8](repeating: 0, count: 1 << 18)
    #expect(mincore(region.base, region.byteCount, &pages) == 0)
    #expect(pages.count { $0 & 1 != 0 } == 1)
  }

  @Test("A region is given back once, and its users stay inside it")
  func misuseTraps() async {
    await #expect(processExitsWith: .failure) {
      let memory = try MetadataMemory()
      let region = try memory.region(.arenas, elementSize: 64, count: 1)
      memory.giveBack(region)
      memory.giveBack(region)
    }
    await #expect(processExitsWith: .failure) {
      let memory = try MetadataMemory()
      let region = try memory.region(.arenas, elementSize: 64, count: 1)
      _ = region.values(UInt64.self, at: 0, count: 9)
    }
  }

  @Test("Many bitmaps share regions, and a later process finds each")
  func manyBitmaps() throws {
    let memory = try MetadataMemory()
    let words = BitmapWords(memory)
    for number in 1...3000 as ClosedRange<UInt64> {
      let bits = try words.bits(
        count: number, granularityBits: 16, table: HostOffset(number << 16))
      bits.load(0..<number)
    }
    let large = try words.bits(count: 1 << 24, granularityBits: 9, table: HostOffset(1 << 40))
    #expect(large.count == 1 << 24)
    let found = FoundMetadata(memory)
    #expect(found.problems.isEmpty && found.bitmaps.count == 3001)
    for number in 1...3000 as ClosedRange<UInt64> {
      let bits = found.bitmaps[number << 16] ?? []
      #expect(bits.map(\.nonzeroBitCount).reduce(0, +) == Int(number))
    }
  }

  @Test("An image that is closed leaves no region behind, and growth only the last table")
  func growthGivesBack() throws {
    let bench = Bench(ImageBuilder(), schedule: nil, isImmediate: true)
    try bench.host.run {
      let image = try await bench.open()
      func tables() -> Int { FoundMetadata(image.metadataMemory).l1Tables.count }
      #expect(tables() == 1)
      for _ in 0..<3 {
        let table = image.geometry.bytesPerL2Table
        try await image.resize(to: UInt64(image.tables.l1.count + 64) * table)
        // The one before may still be looked at: see ActiveL1.
        #expect(tables() == 2)
      }
      weak let memory = image.metadataMemory
      #expect(memory != nil)
      try await image.close()
    }
  }

  @Test("What workers have reserved is in their records, until they take it")
  func reservedClusters() throws {
    let bench = Bench(ImageBuilder(), schedule: nil, isImmediate: true)
    try bench.host.run {
      let image = try await bench.open()
      func reserved() -> Set<HostCluster> {
        Set(FoundMetadata(image.metadataMemory).reserved.map { HostCluster($0) })
      }
      #expect(reserved().isEmpty)
      let run = try await image.arenas.take(upTo: 1, worker: 1)
      let left = reserved()
      #expect(!left.isEmpty && !left.contains(run.start))
      #expect(left == Set(image.arenas.untaken().flatMap(\.runs).joined()))
      let next = try await image.arenas.take(upTo: 3, worker: 1)
      #expect(reserved() == left.subtracting(next.start..<next.end))
      try await image.arenas.returnAll()
      #expect(reserved().isEmpty)
    }
  }
}
