import BlockCore
import QCOW2Format
import TestSupport
import TestTools
import Testing

@testable import QCOW2Engine

/// A table whose slice is still being loaded ahead loses its place, which is then wanted for something
/// else: the request that reads ahead keeps the place from being free [RACE-2, RACE-3].
@Suite struct ReadaheadReuseTests {
  private static let clusterBits = 9
  private static let tables = 40
  /// Guest bytes that one table maps, which is one slice, too.
  private static let perTable = 64 << clusterBits

  /// An image with all of its clusters mapped, in tables that are marked as shared though they are not:
  /// each is copied at the first change, and its old place goes free.
  private func bench(seed: UInt64?) -> Bench {
    var builder = ImageBuilder()
    builder.clusterBits = Self.clusterBits
    builder.size = Self.tables * Self.perTable
    for cluster in 0..<(builder.size >> Self.clusterBits) { builder.mappings[cluster] = .data }
    let bench = Bench(builder, schedule: seed, capacity: 1 << 26)
    bench.options.slotsPerWorker = 16
    bench.options.dirtyAgeMilliseconds = 1_000_000
    return bench
  }

  /// Makes each table look shared, or not; nothing may be under way.
  private func share(_ image: Image, _ isShared: Bool = true) {
    let l1 = image.tables.l1.table
    for index in 0..<l1.count {
      guard let table = L1Entry(raw: l1.load(index)).l2Table else { continue }
      l1.store(L1Entry(l2Table: table, copied: !isShared).raw, at: index)
    }
  }

  private func request(
    _ bench: Bench, _ driver: MiniWorker, _ operation: BlockOperation, _ offset: Int, slot: Int,
    length: Int = 512
  ) async {
    let sectors = (offset / 512)..<((offset + length) / 512)
    let buffer = IOBuffer(count: length)
    defer { withExtendedLifetime(buffer) {} }
    let isRead = operation == .read
    let change = isRead ? 0 : bench.model.begin(sectors, isZero: operation != .write)
    if operation == .write {
      for sector in sectors {
        let memory = buffer.base + (sector - sectors.lowerBound) * 512
        SectorPattern.fill(memory, change: change, sector: sector)
      }
    }
    let request = BlockRequest(
      operation, offset: GuestOffset(UInt64(offset)), length: UInt64(length), data: buffer.data)
    let errno = await driver.perform(request, slot: slot)
    #expect(errno == nil, "\(operation) at \(offset)")
    if !isRead { return bench.model.end(change) }
    // What is not being written now must be as the model has it.
    for sector in sectors where SectorPattern.change(in: buffer.base, sector: sector) == nil {
      let isZero = UnsafeRawBufferPointer(start: buffer.base, count: 512).allSatisfy { $0 == 0 }
      #expect(isZero, "sector \(sector) holds something else")
    }
  }

  @Test("The place of a table that is being loaded ahead is not used for anything else")
  func thePlaceIsKept() throws {
    let bench = bench(seed: nil)
    let file = HoldingFile(bench.file)
    try bench.host.run {
      let image = try await bench.open([file], options: bench.options)
      self.share(image)
      let driver = MiniWorker(target: image, file: file, worker: 0)
      let old = try #require(try image.tables.usable(6).table)
      let cluster = image.geometry.hostCluster(of: old)
      file.held = old.bytes
      try await withThrowingTaskGroup(of: Void.self) { group in
        // A stream: the third request makes it known, and loads tables ahead, table 6 among them.
        group.addTask {
          for table in 0..<3 {
            await self.request(bench, driver, .read, table * Self.perTable, slot: 0)
          }
        }
        while file.waiting.isEmpty { await bench.host.complete("a moment") }
        #expect(image.l2.state(of: old) == .loading)
        // Table 6 moves, and its old place is durably free.
        await self.request(bench, driver, .write, 6 * Self.perTable, slot: 1)
        for round in 0..<20 {
          try await image.flush()
          await image.maintain()
          // Tables and data that want room.
          await self.request(bench, driver, .write, (10 + round) * Self.perTable, slot: 1)
          #expect(!image.metadata.tables.contains(cluster))
        }
        #expect(try await image.allocator.refcount(of: cluster) == 1, "it could be handed out")
        #expect(image.l2.state(of: old) == .loading)
        file.release()
        try await group.waitForAll()
      }
      // Now it is free, and whoever gets it finds nothing of the old table.
      for _ in 0..<3 {
        try await image.flush()
        await image.maintain()
      }
      #expect(try await image.allocator.refcount(of: cluster) == 0)
      #expect(image.health.allowsWrites)
      for table in 31..<Self.tables {
        await self.request(bench, driver, .write, table * Self.perTable, slot: 1)
      }
      #expect(image.health.allowsWrites)
      self.share(image, false)
      try await image.close()
    }
    #expect(bench.problems() == [])
  }

  @Test("Streams, moving tables and discards in any order of events corrupt nothing")
  func anyOrderOfEvents() throws {
    for number in 0..<testSetting("QUBLK_READAHEAD_SEEDS", default: 12) {
      let seed = testSeed("readahead and reuse") &+ UInt64(number)
      let bench = bench(seed: seed)
      let random = Box(SeededGenerator(seed: seed))
      let loads = Box(0)
      try bench.host.run {
        let image = try await bench.open()
        let driver = MiniWorker(target: image, file: bench.file, worker: 0)
        for _ in 0..<4 {
          self.share(image)
          try await image.flush()
          await withTaskGroup(of: Void.self) { group in
            for slot in 0..<2 {
              group.addTask {
                let start = random.value.below(10)
                for table in start..<(start + 20) {
                  await self.request(bench, driver, .read, table * Self.perTable, slot: slot)
                }
              }
            }
            for slot in 2..<5 {
              group.addTask {
                for _ in 0..<25 { await self.change(bench, driver, random, slot: slot) }
              }
            }
            group.addTask {
              for _ in 0..<25 {
                try? await image.flush()
                await image.maintain()
              }
            }
          }
          // What is resident would not be loaded ahead again.
          #expect(image.health.allowsWrites, "seed \(seed)")
        }
        loads.value = Int(image.l2.counts.loadsAhead)
        self.share(image, false)
        try await image.close()
      }
      #expect(loads.value > 0)
      #expect(bench.problems() == [], "seed \(seed)")
    }
  }

  /// Writes or discards in a region of the slot's own.
  private func change(
    _ bench: Bench, _ driver: MiniWorker, _ random: Box<SeededGenerator>, slot: Int
  ) async {
    let table = random.value.below(Self.tables / 4) * 4 + slot % 4
    let offset = table * Self.perTable + random.value.below(60) * 512
    let isWrite = random.value.chance(60)
    await request(
      bench, driver, isWrite ? .write : .discard, offset, slot: slot, length: isWrite ? 512 : 2048)
  }
}

/// A layer that holds back the first read of one place.
private final class HoldingFile: ForwardingFile, @unchecked Sendable {  // why: one thread
  let file: any HostFile
  /// Where the read starts that is held back, once.
  var held: UInt64?
  private(set) var waiting: [UnsafeContinuation<Void, Never>] = []

  init(_ file: any HostFile) { self.file = file }

  func release() {
    let all = waiting
    waiting = []
    for continuation in all { continuation.resume() }
  }

  func read(into buffer: DataBuffer, at offset: HostOffset) async throws(Errno) {
    if offset.bytes == held {
      held = nil
      await withUnsafeContinuation { waiting.append($0) }
    }
    try await file.read(into: buffer, at: offset)
  }
}
