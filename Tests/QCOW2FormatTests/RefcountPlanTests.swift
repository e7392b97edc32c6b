import BlockCore
import QCOW2Format
import TestSupport
import Testing

/// The geometries with the fewest and the most refcounts in a block, and the usual one.
private let geometries = [(9, 6), (9, 0), (12, 4), (16, 4), (16, 6), (21, 0), (21, 6)].map {
  ClusterGeometry(clusterBits: $0, refcountOrder: $1)
}

/// Whether a plan is what it says: disjoint runs, a block for each of its own clusters, an entry for
/// each block.
private func isSound(_ plan: RefcountPlan, _ geometry: ClusterGeometry) -> Bool {
  let entries = UInt64(plan.table.count) * geometry.clusterSize / 8
  return plan.blocks.count == plan.numbers.count && !plan.table.isEmpty && !plan.blocks.isEmpty
    && !plan.table.overlaps(plan.blocks)
    && plan.clusters.count == plan.table.count + plan.blocks.count
    && plan.numbers == Set(plan.numbers).sorted() && (plan.numbers.last ?? 0) < entries
    && entries * 8 <= FormatLimit.refcountTableBytes
    && geometry.refcountBlocks(of: plan.clusters).allSatisfy(plan.numbers.contains)
}

@Suite("Where a refcount table and its blocks go") struct RefcountPlanTests {
  @Test("A new image has as few of both as count everything", arguments: geometries)
  func newImage(_ geometry: ClusterGeometry) throws {
    let perBlock = geometry.refcountBlockEntries
    let perCluster = geometry.clusterSize / 8
    var sizes: Set<UInt64> = [1, 2, 3, 1000, 100_000]
    for edge in [perBlock, 2 * perBlock, perCluster * (perBlock - 1)] {
      for near in 0...4 { sizes.formUnion([edge - UInt64(near), edge + UInt64(near)]) }
    }
    for others in sizes where others / perBlock < 1 << 19 {
      let plan = try RefcountPlan(newImageWith: others, geometry)
      #expect(isSound(plan, geometry))
      let (blocks, clusters) = (UInt64(plan.blocks.count), UInt64(plan.table.count))
      #expect(plan.table.lowerBound == 1 && plan.blocks.lowerBound == HostCluster(1) + clusters)
      #expect(plan.numbers == Array(0..<blocks))
      // Enough, and with one of either less not enough.
      let total = others + blocks + clusters
      #expect(blocks * perBlock >= total && clusters * perCluster >= blocks)
      #expect(blocks == 1 || (blocks - 1) * perBlock < total - 1)
      #expect(clusters == 1 || (clusters - 1) * perCluster < blocks)
    }
  }

  @Test("The table of a new image ends at the limit")
  func newImageTooLarge() throws {
    let geometry = ClusterGeometry(clusterBits: 9, refcountOrder: 6)
    // 2^20 entries in 2^14 clusters, each block with 64 refcounts, one of them for itself.
    let most: UInt64 = (1 << 20) * 63 - (1 << 14)
    #expect(try RefcountPlan(newImageWith: most, geometry).numbers.count == 1 << 20)
    #expect(throws: RefcountPlan.TableTooLong(entries: 1 << 20 + 1)) {
      try RefcountPlan(newImageWith: most + 1, geometry)
    }
    #expect(throws: RefcountPlan.TableTooLong.self) {
      try RefcountPlan(newImageWith: 1 << 42 + 1 << 22, geometry)
    }
  }

  @Test(
    "A table that grows is half as large again, starts where the old one ends, and counts itself",
    arguments: geometries)
  func growing(_ geometry: ClusterGeometry) throws {
    let perCluster = geometry.clusterSize / 8
    for clusters: UInt64 in [1, 2, 7] where clusters * geometry.clusterSize < 4 << 20 {
      let entries = clusters * perCluster
      for number in [0, entries, entries + 1, 2 * entries, 3 * entries + 5] {
        let plan = try RefcountPlan(growing: entries, toCover: number, geometry)
        #expect(isSound(plan, geometry))
        let start = geometry.clusters(ofRefcountBlock: entries).lowerBound
        #expect(plan.blocks.lowerBound == start && plan.table.lowerBound == plan.blocks.upperBound)
        #expect(plan.numbers == Array(entries..<(entries + UInt64(plan.blocks.count))))
        let room = UInt64(plan.table.count) * perCluster
        #expect(room > number && room >= entries + entries / 2)
        // No cluster more than that, but for entries of the new blocks.
        let wanted = max(entries + entries / 2, number + 1) + 1
        let least = geometry.clusters(
          covering: max(wanted, entries + UInt64(plan.blocks.count)) * 8)
        #expect(UInt64(plan.table.count) == least)
      }
    }
  }

  @Test("A table that grows ends at the limit")
  func growingTooFar() throws {
    let geometry = ClusterGeometry(clusterBits: 16, refcountOrder: 4)
    let most = FormatLimit.refcountTableBytes / 8
    #expect(try RefcountPlan(growing: 8192, toCover: most - 2, geometry).table.count == 128)
    #expect(throws: RefcountPlan.TableTooLong.self) {
      try RefcountPlan(growing: 8192, toCover: most - 1, geometry)
    }
    #expect(throws: RefcountPlan.TableTooLong.self) {
      try RefcountPlan(growing: most, toCover: most, geometry)
    }
  }

  @Test(
    "What is written anew has blocks where they are needed, and for itself", arguments: geometries)
  func anew(_ geometry: ClusterGeometry) throws {
    let perBlock = geometry.refcountBlockEntries
    for used in [[], [0], [0, 2], [1, 5, 9], Array(0..<200)] as [[UInt64]] {
      for start in [1, perBlock - 1, 3 * perBlock, 7 * perBlock - 2] {
        var asked: [UInt64] = []
        let plan = try RefcountPlan(counting: used, geometry) { count in
          asked.append(count)
          return HostCluster(start)..<HostCluster(start + count)
        }
        #expect(isSound(plan, geometry))
        #expect(
          plan.table.lowerBound.number == start && plan.blocks.lowerBound == plan.table.upperBound)
        #expect(asked == Set(asked).sorted() && asked.last == UInt64(plan.clusters.count))
        // Nothing but what was asked for and the blocks of the plan itself.
        let own = geometry.refcountBlocks(of: plan.clusters)
        #expect(Set(plan.numbers) == Set(used).union(own))
      }
    }
  }

  @Test("Refcounts far out that are written anew end at the limit")
  func anewTooFar() throws {
    let geometry = ClusterGeometry(clusterBits: 16, refcountOrder: 4)
    let most = FormatLimit.refcountTableBytes / 8
    let plan = try RefcountPlan(counting: [most - 1], geometry) { 5..<HostCluster(5 + $0) }
    #expect(plan.table == 5..<133 && plan.numbers == [0, most - 1])
    #expect(throws: RefcountPlan.TableTooLong(entries: most + 1)) {
      try RefcountPlan(counting: [0, most], geometry) { 5..<HostCluster(5 + $0) }
    }
  }

  @Test("A cluster is covered if its block is there, and entries lead to the blocks")
  func entries() throws {
    let geometry = ClusterGeometry(clusterBits: 9, refcountOrder: 6)
    let plan = try RefcountPlan(counting: [1, 4], geometry) { 10..<HostCluster(10 + $0) }
    #expect(plan.numbers == [0, 1, 4] && plan.table == 10..<11)
    let covered = (0..<UInt64(400)).filter { plan.covers(HostCluster($0)) }
    #expect(covered == Array(UInt64(0)..<128) + Array(UInt64(256)..<320))
    let blocks = (0..<3).map { plan.block(at: $0) }
    #expect(blocks == [HostOffset(0x1600), HostOffset(0x1800), HostOffset(0x1a00)])
    let table = IOBuffer(count: 512)
    table.base.storeBE64(7, 16)
    plan.storeEntries(in: table.base)
    let stored: [UInt64] = (0..<6).map { table.base.be64($0 * 8) }
    #expect(stored == [0x1600, 0x1800, 7, 0, 0x1a00, 0])
  }

  @Test("The fewest blocks count a run and themselves", arguments: geometries)
  func blocks(_ geometry: ClusterGeometry) {
    let perBlock = geometry.refcountBlockEntries
    for others in [0, 1, perBlock - 1, perBlock, 2 * perBlock - 2, 2 * perBlock - 1, 1 << 40] {
      let blocks = RefcountPlan.blocks(counting: others, geometry)
      #expect(blocks * perBlock >= others + blocks)
      #expect(blocks == 0 || (blocks - 1) * perBlock < others + blocks - 1)
    }
  }

  @Test("The used clusters of a block are counted once, and no other", arguments: 0...6)
  func countOnce(order: Int) {
    let geometry = ClusterGeometry(clusterBits: 9, refcountOrder: order)
    let count = geometry.refcountBlockEntries
    let second = geometry.clusters(ofRefcountBlock: 1)
    #expect(second == HostCluster(count)..<HostCluster(2 * count))
    for used in [0..<(3 * count), (count + 3)..<(count + 5), 0..<(count + 1), 0..<count, 0..<0] {
      let block = IOBuffer(count: 512)
      let clusters = HostCluster(used.lowerBound)..<HostCluster(used.upperBound)
      RefcountWidth.countOnce(clusters, in: block.base, number: 1, geometry)
      for cluster in second {
        let found = RefcountWidth.get(block.base, order: order, index: Int(cluster.number - count))
        #expect(found == (clusters.contains(cluster) ? 1 : 0))
      }
    }
  }
}
