import BlockCore
import Synchronization
import TestSupport
import Testing

@testable import QCOW2Engine

/// The order of write-back (docs/design.md, section 4, rule 7), seen from below.
@Suite struct FlushOrderTests {
  private let cluster = 512

  private func bench(_ schedule: UInt64? = nil) -> Bench {
    var builder = ImageBuilder()
    builder.clusterBits = 9
    builder.size = 256 << 10
    return Bench(builder, schedule: schedule)
  }

  private func write(_ bench: Bench, _ image: Image, sector: Int, _ count: Int = 1) async {
    let driver = MiniWorker(target: image, file: bench.file, worker: 0)
    let buffer = IOBuffer(count: count * 512)
    let request = BlockRequest(
      .write, offset: GuestOffset(UInt64(sector * 512)), length: UInt64(count * 512),
      data: buffer.data)
    #expect(await driver.perform(request, slot: 0) == nil)
  }

  /// What an event touches, by the tables that the image has now.
  private func name(_ event: HostEvent, _ bytes: ImageBytes) -> String {
    if event.kind == .sync { return "sync" }
    let at = Int(event.offset)
    let l1 = Int(bytes.be64(40))
    if at >= l1 && at < l1 + (Int(bytes.be32(36)) * 8 + 511) & ~511 { return "L1" }
    if at == Int(bytes.be64(48)) { return "refcount table" }
    for index in 0..<(cluster / 8) {
      if Int(bytes.be64(Int(bytes.be64(48)) + index * 8)) == at { return "refcount block" }
    }
    for index in 0..<Int(bytes.be32(36)) {
      let table = Int(bytes.be64(l1 + index * 8) & 0x00ff_ffff_ffff_fe00)
      if table != 0 && at >= table && at < table + cluster { return "L2" }
    }
    return "data"
  }

  @Test("A flush writes refcounts, then L2, then L1, with a sync after each")
  func aFlushWritesInOrder() throws {
    let bench = bench()
    try bench.host.run {
      let image = try await bench.open()
      await self.write(bench, image, sector: 3)
      let before = bench.recording.events.count
      try await image.flush()
      let order = bench.recording.events[before...].map { self.name($0, bench.bytes) }
      #expect(order == ["refcount block", "sync", "L2", "sync", "L1", "sync"])
    }
  }

  @Test("A new refcount block is durable before the table that points at it")
  func aNewRefcountBlockIsDurableBeforeItsEntry() throws {
    let bench = bench()
    try bench.host.run {
      let image = try await bench.open()
      // 256 refcounts in a block of 512 bytes: the second block begins here.
      await self.write(bench, image, sector: 0, 300)
      try await image.flush()
      let order = bench.recording.events.map { self.name($0, bench.bytes) }
      let table = try #require(order.firstIndex(of: "refcount table"))
      let sync = try #require(order[..<table].lastIndex(of: "sync"))
      #expect(order[..<sync].contains("refcount block"))
      #expect(!order[sync..<table].contains("refcount block"))
    }
  }

  @Test(
    "Flushes at the same time share at most two rounds", arguments: [nil, 1, 2, 3] as [UInt64?])
  func flushesShareRounds(schedule: UInt64?) throws {
    let bench = bench(schedule)
    try bench.host.run {
      let image = try await bench.open()
      await self.write(bench, image, sector: 3)
      await withTaskGroup(of: Void.self) { group in
        for _ in 0..<12 { group.addTask { try? await image.flush() } }
      }
      #expect(image.flusher.rounds.load(ordering: .relaxed) <= 2)
      #expect(!image.flusher.hasDirtySlices)
    }
  }

  @Test(
    "What is dirtied during a flush is written by the next one",
    arguments: 1...30 as ClosedRange<UInt64>)
  func whatIsDirtiedDuringAFlushIsWrittenByTheNext(schedule: UInt64) throws {
    let bench = bench(schedule)
    try bench.host.run {
      let image = try await bench.open()
      await self.write(bench, image, sector: 3)
      await withTaskGroup(of: Void.self) { group in
        group.addTask { try? await image.flush() }
        for table in 1..<6 { group.addTask { await self.write(bench, image, sector: table * 64) } }
      }
      try await image.flush()
      #expect(!image.flusher.hasDirtySlices)
    }
    // The file alone must show all six clusters.
    let verifier = ImageVerifier(bench.bytes)
    #expect(verifier.check().errors.isEmpty)
    for table in 1..<6 { #expect(verifier.sector(table * 64) != nil) }
  }

  @Test("What was asked for with FUA is durable when it is done, and so are its tables")
  func forcedUnitAccessIsDurable() throws {
    let bench = bench()
    try bench.host.run {
      let image = try await bench.open()
      await self.write(bench, image, sector: 3)
      try await image.flush()
      let driver = MiniWorker(target: image, file: bench.file, worker: 0)
      let buffer = IOBuffer(count: 512)
      // In place, a new cluster, a new table, zeros, and again zeros: where nothing changes.
      let requests: [(BlockOperation, Int)] = [
        (.write, 3), (.write, 4), (.write, 64), (.writeZeroes, 3), (.writeZeroes, 3),
      ]
      for (operation, sector) in requests {
        let before = bench.recording.events.count
        let request = BlockRequest(
          operation, offset: GuestOffset(UInt64(sector * 512)), length: 512,
          data: operation == .write ? buffer.data : .none, isFUA: true)
        #expect(await driver.perform(request, slot: 0) == nil)
        let events = bench.recording.events[before...]
        let last = try #require(events.last, "\(operation) \(sector)")
        #expect(last.kind == .sync && last.end < .max, "\(operation) \(sector)")
        #expect(events.dropLast().allSatisfy { $0.end < last.start }, "\(operation) \(sector)")
        #expect(!image.flusher.hasDirtySlices, "\(operation) \(sector)")
      }
      withExtendedLifetime(buffer) {}
      try await image.close()
    }
  }

  @Test("After a flush that failed to write, the background round tries again")
  func theBackgroundRoundTriesAgain() throws {
    let bench = bench()
    bench.options.dirtyAgeMilliseconds = 0
    try bench.host.run {
      let image = try await bench.open()
      await self.write(bench, image, sector: 3)
      bench.faulty.fault = Fault(.write, number: 1, errno: .noSpace)
      await #expect(throws: ImageError.self) { try await image.flush() }
      await image.maintain()
      #expect(!image.flusher.hasDirtySlices)
    }
  }

  @Test("A new refcount block's entry is written after a round that failed before or at it")
  func theRefcountTableOutlivesAFailedRound() throws {
    for number in 1...40 {
      let bench = bench()
      let hasFailed = Box(false)
      try bench.host.run {
        let image = try await bench.open()
        await self.write(bench, image, sector: 0, 300)
        bench.faulty.fault = Fault(.write, number: number, errno: .io)
        hasFailed.value = (try? await image.flush()) == nil
        bench.faulty.fault = nil
        try await image.flush()
        #expect(!image.allocator.refcounts.table.hasDirty)
      }
      #expect(ImageVerifier(bench.bytes).check().errors.isEmpty, "write \(number)")
      if !hasFailed.value { return #expect(number > 3) }
    }
    Issue.record("no write was the last")
  }

  @Test("A flush that fails to write keeps everything dirty for the next")
  func aFailedFlushKeepsEverythingDirty() throws {
    for number in 1...4 {
      let bench = bench()
      try bench.host.run {
        let image = try await bench.open()
        await self.write(bench, image, sector: 3)
        bench.faulty.fault = Fault(.write, number: number, errno: .io)
        _ = try? await image.flush()
        try await image.flush()
        #expect(!image.flusher.hasDirtySlices)
      }
      let verifier = ImageVerifier(bench.bytes)
      #expect(verifier.check().errors.isEmpty)
      #expect(verifier.sector(3) != nil)
    }
  }
}
