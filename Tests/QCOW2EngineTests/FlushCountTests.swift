import BlockCore
import Synchronization
import TestSupport
import Testing

@testable import QCOW2Engine

/// What flushes cost in barriers and writes: alone, and many at once.
@Suite struct FlushCountTests {
  private func bench(_ schedule: UInt64?, size: Int = 8 << 20) -> Bench {
    var builder = ImageBuilder()
    builder.clusterBits = 12
    builder.size = size
    for cluster in 0..<32 { builder.mappings[cluster] = .data }
    let bench = Bench(builder, schedule: schedule, isImmediate: schedule == nil)
    bench.options.slotsPerWorker = 64
    bench.options.dirtyAgeMilliseconds = 1_000_000
    return bench
  }

  private func write(_ image: Image, _ bench: Bench, sector: Int, slot: Int = 0) async {
    let driver = MiniWorker(target: image, file: bench.file, worker: 0)
    let buffer = IOBuffer(count: 512)
    SectorPattern.fill(buffer.base, change: 5, sector: sector)
    let request = BlockRequest(
      .write, offset: GuestOffset(UInt64(sector * 512)), length: 512, data: buffer.data)
    #expect(await driver.perform(request, slot: slot) == nil)
    withExtendedLifetime(buffer) {}
  }

  /// The kinds of host operations of one flush.
  private func flush(_ image: Image, _ bench: Bench) async throws -> [HostEvent.Kind] {
    let before = bench.recording.events.count
    try await image.flush()
    return bench.recording.events[before...].map(\.kind)
  }

  @Test("A flush has the barriers that its changes need, and no more")
  func noNeedlessBarriers() throws {
    let bench = bench(nil)
    try bench.host.run {
      let image = try await bench.open()
      #expect(try await self.flush(image, bench) == [.sync])
      await self.write(image, bench, sector: 3)
      #expect(try await self.flush(image, bench) == [.sync], "data only")
      await self.write(image, bench, sector: 40 * 8)
      let refcounts = try await self.flush(image, bench)
      #expect(refcounts == [.write, .sync, .write, .sync], "refcounts, then L2")
      await self.write(image, bench, sector: 41 * 8)
      #expect(try await self.flush(image, bench) == [.sync, .write, .sync], "data, then L2")
      #expect(try await self.flush(image, bench) == [.sync], "nothing")
      try await image.close()
    }
  }

  @Test("A table that alone is dirty is written: what failed before it may have been")
  func aTableThatAloneIsDirtyIsWritten() throws {
    let bench = bench(nil)
    try bench.host.run {
      let image = try await bench.open()
      for table in [image.allocator.refcounts.table, image.tables.l1.table] {
        let (last, at) = (table.count - 1, Int(table.offset.bytes))
        let entry = table.load(last)
        table.store(entry | 0x1000_0000, at: last)
        #expect(try await self.flush(image, bench).filter { $0 == .write }.count == 1)
        #expect(bench.bytes.be64(at + last * 8) == entry | 0x1000_0000)
        table.store(entry, at: last)
        try await image.flush()
        #expect(bench.bytes.be64(at + last * 8) == entry)
      }
    }
  }

  @Test(
    "Clients that flush after each write share rounds", arguments: 1...10 as ClosedRange<UInt64>)
  func clientsShareRounds(schedule: UInt64) throws {
    let (clients, each) = (16, 12)
    let bench = bench(schedule)
    try bench.host.run {
      let image = try await bench.open()
      await self.write(image, bench, sector: 3)
      try await image.flush()
      let before = bench.recording.events.count
      let rounds = image.flusher.rounds.load(ordering: .relaxed)
      await withTaskGroup(of: Void.self) { group in
        for client in 0..<clients {
          group.addTask {
            for step in 0..<each {
              await self.write(image, bench, sector: client * 8 + step % 8, slot: client)
              #expect((try? await image.flush()) != nil)
            }
          }
        }
      }
      let syncs = bench.recording.events[before...].count { $0.kind == .sync }
      let done = Int(image.flusher.rounds.load(ordering: .relaxed) - rounds)
      // In place: one fdatasync is all that a round needs.
      #expect(syncs == done)
      #expect(syncs * 4 <= clients * each, "\(syncs) syncs for \(clients * each) flushes")
    }
  }

  @Test(
    "Dirty slices are written several at a time, neighbours in one transfer",
    arguments: 1...5 as ClosedRange<UInt64>)
  func slicesAreWrittenTogether(schedule: UInt64) throws {
    // A slice maps 2 MiB; each table has one.
    let bench = bench(schedule, size: 64 << 20)
    try bench.host.run {
      let image = try await bench.open()
      for table in 0..<32 { await self.write(image, bench, sector: table * 4096 + 8) }
      try await image.flush()
      for table in 0..<32 where table % 3 != 0 {
        await self.write(image, bench, sector: table * 4096 + 16)
      }
      let before = bench.recording.events.count
      try await image.flush()
      let events = bench.recording.events[before...]
      let writes = events.filter { $0.kind == .write }
      #expect(writes.reduce(0) { $0 + $1.length } >= 20 * 4096)
      let most =
        writes.map { one in
          writes.count { $0.start <= one.start && one.start < $0.end }
        }.max() ?? 0
      #expect(writes.count < 4 || most > 1 && most <= WriteBackBatch.lanes, "\(most) at once")
      let last = try #require(events.last)
      #expect(last.kind == .sync && writes.allSatisfy { $0.end < last.start })
      #expect(!image.flusher.hasDirtySlices)
      try await image.close()
    }
    let report = ImageVerifier(bench.bytes).check()
    #expect(report.errors.isEmpty && report.leaks == 0, "\(report)")
  }

  @Test(
    "A write-back that fails in one lane leaves its slices dirty for the next", arguments: 1...6)
  func aLaneFails(number: Int) throws {
    let bench = bench(7, size: 64 << 20)
    try bench.host.run {
      let image = try await bench.open()
      for table in 0..<32 { await self.write(image, bench, sector: table * 4096 + 8) }
      bench.faulty.fault = Fault(.write, number: number, errno: .io)
      await #expect(throws: ImageError.self) { try await image.flush() }
      bench.faulty.fault = nil
      #expect(image.flusher.hasDirtySlices)
      try await image.flush()
      #expect(!image.flusher.hasDirtySlices)
    }
    let verifier = ImageVerifier(bench.bytes)
    #expect(verifier.check().errors.isEmpty)
    for table in 0..<32 { #expect(verifier.sector(table * 4096 + 8) != nil) }
  }
}
