import BlockCore
import Synchronization
import TestSupport
import TestTools
import Testing

@testable import QCOW2Engine

@Suite struct MetadataMapTests {
  private final class Shared: Sendable {
    let hasBegun = Atomic<Bool>(false)
    let isOver = Atomic<Bool>(false)
    let wrong = Atomic<Int>(0)
  }

  @Test("What lies between two places of a table is never taken for metadata")
  func whatLiesBetweenIsData() async throws {
    let low: Range<HostCluster> = 100..<110
    let high: Range<HostCluster> = 1_000_000..<1_000_020
    let map = try MetadataMap(
      fixed: [0..<1], refcountTable: low, l1Table: 50..<51, expectedTables: 8)
    let shared = Shared()
    let thread = ThreadExecutor()
    defer { thread.stop() }
    let reader = Task(executorPreference: thread) {
      shared.hasBegun.store(true, ordering: .relaxed)
      while !shared.isOver.load(ordering: .relaxed) {
        for cluster: HostCluster in [110, 500_000, 999_999] where map.contains(cluster) {
          shared.wrong.add(1, ordering: .relaxed)
        }
      }
    }
    while !shared.hasBegun.load(ordering: .relaxed) { await Task.yield() }
    for _ in 0..<2_000_000 {
      map.moveRefcountTable(to: high)
      map.moveRefcountTable(to: low)
    }
    shared.isOver.store(true, ordering: .relaxed)
    await reader.value
    #expect(shared.wrong.load(ordering: .relaxed) == 0)
    #expect(map.contains(100) && map.contains(109) && !map.contains(1_000_000))
    map.moveRefcountTable(to: high)
    #expect(!map.contains(109) && map.contains(1_000_019) && !map.contains(1_000_020))
  }

  @Test("The largest table at the highest place is known as such")
  func theLargestTable() throws {
    let end = HostCluster(1 << 47)
    let place = end.advanced(by: -65536)..<end
    let map = try MetadataMap(fixed: [], refcountTable: place, l1Table: 1..<2, expectedTables: 8)
    #expect(map.contains(place.lowerBound) && map.contains(end.advanced(by: -1)))
    #expect(!map.contains(place.lowerBound.advanced(by: -1)) && !map.contains(end))
  }

  @Test("A set's memory follows the most clusters in it at a time, not the number of changes")
  func memoryIsBounded() throws {
    let set = try ClusterSet(minimumCapacity: 64)
    var random = SeededGenerator(seed: testSeed("cluster set"))
    var live: [HostCluster] = []
    var most = 0
    for change in 0..<200_000 {
      if live.count < 100 || change % 2 == 0 && live.count < 120 {
        let cluster = HostCluster(1 + UInt64(random.below(1 << 30)))
        if set.insert(cluster) { live.append(cluster) }
      } else {
        set.remove(live.remove(at: random.below(live.count)))
      }
      most = max(most, set.slotCount)
    }
    #expect(most <= 2048, "\(most) slots for 120 clusters")
    #expect(live.allSatisfy { set.contains($0) })
    var wrong = 0
    for _ in 0..<10_000
    where set.contains(HostCluster(1 << 31) + UInt64(random.below(1 << 30))) { wrong += 1 }
    #expect(wrong == 0)
    for cluster in live { set.remove(cluster) }
    #expect(!live.contains { set.contains($0) })
  }

  @Test("What stays in a set is found at every moment while others come and go")
  func whatStaysIsFound() async throws {
    let set = try ClusterSet(minimumCapacity: 8)
    let staying = (1...UInt64(40)).map { HostCluster($0 * 977) }
    for cluster in staying { set.insert(cluster) }
    let shared = Shared()
    let thread = ThreadExecutor()
    defer { thread.stop() }
    let reader = Task(executorPreference: thread) {
      shared.hasBegun.store(true, ordering: .relaxed)
      while !shared.isOver.load(ordering: .relaxed) {
        for cluster in staying where !set.contains(cluster) {
          shared.wrong.add(1, ordering: .relaxed)
        }
      }
    }
    while !shared.hasBegun.load(ordering: .relaxed) { await Task.yield() }
    for round in 0..<2000 {
      let first = HostCluster(1_000_000) + UInt64(round * 64)
      for cluster in first..<(first + 60) { set.insert(cluster) }
      for cluster in first..<(first + 60) { set.remove(cluster) }
    }
    shared.isOver.store(true, ordering: .relaxed)
    await reader.value
    #expect(shared.wrong.load(ordering: .relaxed) == 0)
  }

  @Test("Of L1 tables that were replaced, only the last one stays in memory")
  func replacedTablesGo() throws {
    func table() throws -> DiskTable {
      try DiskTable(
        offset: .init(4096), bytes: UnsafeRawBufferPointer(start: nil, count: 0), count: 64)
    }
    let l1 = ActiveL1(try table())
    weak let first = l1.table
    l1.replace(with: try table())
    #expect(first != nil)
    for _ in 0..<10 {
      weak let before = l1.table
      l1.replace(with: try table())
      #expect(before != nil)
    }
    #expect(first == nil)
    #expect(l1.load(0) == 0)
  }

  // MARK: The map of an open image

  /// The host clusters that hold metadata, and those that hold data, by the tables of an image.
  private func places(_ bytes: ImageBytes) -> (metadata: Set<Int>, data: Set<Int>) {
    let mask: UInt64 = 0x00ff_ffff_ffff_fe00
    let size = 1 << Int(bytes.be32(20))
    func words(_ offset: Int, _ count: Int) -> [Int] {
      (0..<count).map { Int(bytes.be64(offset + $0 * 8) & mask) }.filter { $0 != 0 }
    }
    func clusters(_ offset: Int, _ length: Int) -> Range<Int> {
      (offset / size)..<((offset + length + size - 1) / size)
    }
    let (l1, entries) = (Int(bytes.be64(40)), Int(bytes.be32(36)))
    let (table, length) = (Int(bytes.be64(48)), Int(bytes.be32(56)) * size)
    let l2 = words(l1, entries)
    var metadata: Set<Int> = [0]
    metadata.formUnion(clusters(l1, entries * 8))
    metadata.formUnion(clusters(table, length))
    metadata.formUnion((l2 + words(table, length / 8)).map { $0 / size })
    return (metadata, Set(l2.flatMap { words($0, size / 8) }.map { $0 / size }))
  }

  private func expectKnown(_ image: Image, _ bytes: ImageBytes, _ moment: String) {
    let (metadata, data) = places(bytes)
    let unknown = metadata.filter { !image.metadata.contains(HostCluster(UInt64($0))) }
    #expect(unknown.isEmpty, "\(moment): metadata in \(unknown.sorted().prefix(3)) is unknown")
    let wrong = data.filter { image.metadata.contains(HostCluster(UInt64($0))) }
    #expect(wrong.isEmpty, "\(moment): data in \(wrong.sorted().prefix(3)) is metadata")
  }

  @Test("Each table that an open image gets is known as metadata", arguments: [false, true])
  func eachNewTableIsKnown(hasSnapshot: Bool) throws {
    let builder =
      hasSnapshot
      ? ThreadRun.builder(clusterBits: 9, hasSnapshot: true) : ImageShape.nearGrowth.builder
    let bench = Bench(builder, schedule: nil, isImmediate: true)
    let last = builder.size / 512
    try bench.host.run {
      let image = try await bench.open()
      self.expectKnown(image, bench.bytes, "opened")
      let driver = MiniWorker(target: image, file: bench.file, worker: 0)
      // Tables that are copied, new ones, refcount blocks, and a larger refcount table.
      for sector in stride(from: hasSnapshot ? 0 : 3800, to: last, by: 16) {
        #expect(await bench.write(sector..<min(sector + 16, last), by: driver) == nil)
      }
      try await image.flush()
      self.expectKnown(image, bench.bytes, "written")
      // A larger L1 table, and what comes behind the old one's reach.
      if !hasSnapshot {
        try await image.resize(to: image.size * 4)
        let request = BlockRequest(.writeZeroes, offset: GuestOffset(image.size - 512), length: 512)
        #expect(await driver.perform(request, slot: 0) == nil)
        let buffer = IOBuffer(count: 512)
        let write = BlockRequest(
          .write, offset: GuestOffset(image.size - 1024), length: 512, data: buffer.data)
        #expect(await driver.perform(write, slot: 0) == nil)
        withExtendedLifetime(buffer) {}
        try await image.flush()
        self.expectKnown(image, bench.bytes, "grown")
      }
      try await image.close()
    }
    #expect(ImageVerifier(bench.bytes).check().errors.isEmpty)
    if !hasSnapshot { #expect(bench.bytes.be64(48) != bench.original.be64(48)) }
  }
}
