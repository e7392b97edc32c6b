import BlockCore
import Glibc
import Synchronization
import TestSupport
import Testing

@testable import QCOW2Engine

/// The protocol of the DIRTY bit (docs/design.md, section 4, rule 10).
@Suite struct LazyRefcountTests {
  private func bench(compatible: UInt64 = 1, version: Int = 3) -> Bench {
    var builder = ImageBuilder()
    builder.clusterBits = 12
    builder.version = version
    builder.compatible = compatible
    builder.size = 16 << 20
    return Bench(builder, schedule: nil)
  }

  private func write(_ bench: Bench, _ image: Image, cluster: Int) async {
    let driver = MiniWorker(target: image, file: bench.file, worker: 0)
    let buffer = IOBuffer(count: 4096)
    let request = BlockRequest(
      .write, offset: GuestOffset(UInt64(cluster * 4096)), length: 4096, data: buffer.data)
    #expect(await driver.perform(request, slot: 0) == nil)
  }

  private func discard(_ bench: Bench, _ image: Image, cluster: Int) async {
    let driver = MiniWorker(target: image, file: bench.file, worker: 0)
    let request = BlockRequest(
      .discard, offset: GuestOffset(UInt64(cluster * 4096)), length: 4096, data: .none)
    #expect(await driver.perform(request, slot: 0) == nil)
  }

  private func isDirty(_ bytes: ImageBytes) -> Bool { bytes.be64(72) & 1 == 1 }

  private func events(_ bench: Bench, from start: Int) -> [HostEvent] {
    Array(bench.recording.events[start...])
  }

  @Test("The DIRTY bit is durable before the first table is written")
  func theBitIsDurableBeforeTheFirstTable() throws {
    let bench = bench()
    try bench.host.run {
      let image = try await bench.open()
      #expect(!self.isDirty(bench.bytes), "opening alone changes nothing")
      await self.write(bench, image, cluster: 3)
      let before = bench.recording.events.count
      try await image.flush()
      let events = self.events(bench, from: before)
      // Header, sync (which also covers the data), L2, sync, L1, sync.
      #expect(events.map(\.kind) == [.write, .sync, .write, .sync, .write, .sync])
      #expect(events[0].offset == 0 && events[0].data[79] == 1)
      #expect(self.isDirty(bench.bytes))
      // While it is set, a barrier alone stands between the guest's data and the table.
      await self.write(bench, image, cluster: 4)
      let later = bench.recording.events.count
      try await image.flush()
      #expect(self.events(bench, from: later).map(\.kind) == [.sync, .write, .sync])
    }
  }

  @Test("The bit is worth clearing once no round has run for a second")
  func theBitStaysForAWhile() throws {
    let bench = bench()
    try bench.host.run {
      let image = try await bench.open()
      await self.write(bench, image, cluster: 3)
      try await image.flush()
      let lazy = image.flusher.lazy
      let answers = [(1, 5000), (1, 5999), (1, 6000), (2, 9000), (2, 9999), (2, 10_000)].map {
        lazy.isWorthClearing(rounds: UInt64($0.0), now: UInt64($0.1))
      }
      #expect(answers == [false, false, true, false, false, true])
      try await image.close()
    }
  }

  @Test("While the bit is set, flushes write tables and no refcounts")
  func flushesWriteNoRefcounts() throws {
    let costs = try [UInt64(0), 1].map { compatible -> (writes: Int, syncs: Int) in
      let bench = bench(compatible: compatible)
      let cost = Box((writes: 0, syncs: 0))
      try bench.host.run {
        let image = try await bench.open()
        await self.write(bench, image, cluster: 0)
        try await image.flush()
        let before = bench.recording.events.count
        for step in 1...100 {
          await self.write(bench, image, cluster: step)
          await self.discard(bench, image, cluster: step - 1)
          await image.maintain()
          try await image.flush()
        }
        let events = self.events(bench, from: before)
        let data = 100
        cost.value = (
          events.count { $0.kind == .write } - data, events.count { $0.kind == .sync }
        )
        try await image.close()
      }
      return cost.value
    }
    print("100 × (write, discard, flush): plain \(costs[0]), lazy \(costs[1])")
    #expect(costs[1].writes <= costs[0].writes / 2 + 3)
    #expect(costs[1].syncs <= costs[0].syncs)
  }

  @Test("The bit goes after a second without change, and refcounts are right then")
  func theBitGoesWhenIdle() throws {
    let bench = bench()
    try bench.host.run {
      let image = try await bench.open()
      await self.write(bench, image, cluster: 3)
      try await image.flush()
      await image.maintain()
      #expect(self.isDirty(bench.bytes))
      usleep(UInt32(LazyRefcounts.idleMilliseconds + 30) * 1000)
      await image.maintain()
      #expect(!self.isDirty(bench.bytes))
      // The arena's clusters are leaks to a checker; nothing else may be wrong.
      #expect(ImageVerifier(bench.bytes).check().errors.isEmpty)
      await self.write(bench, image, cluster: 1000)
      try await image.flush()
      #expect(self.isDirty(bench.bytes), "the next change sets it again")
    }
  }

  @Test("Close leaves a clean image, and the lazy flag")
  func closeLeavesACleanImage() throws {
    let bench = bench()
    try bench.host.run {
      let image = try await bench.open()
      for cluster in 0..<600 { await self.write(bench, image, cluster: cluster) }
      try await image.flush()
      #expect(self.isDirty(bench.bytes))
      try await image.close()
    }
    #expect(!isDirty(bench.bytes))
    #expect(bench.bytes.be64(80) == 1)
    let report = ImageVerifier(bench.bytes).check()
    #expect(report.errors.isEmpty && report.leaks == 0)
  }

  @Test("Version 2, and images without the flag, never get the bit", arguments: [2, 3])
  func othersNeverGetTheBit(version: Int) throws {
    let bench = bench(compatible: 0, version: version)
    try bench.host.run {
      let image = try await bench.open()
      await self.write(bench, image, cluster: 3)
      try await image.flush()
      let headerWrites = bench.recording.events.filter { $0.kind == .write && $0.offset == 0 }
      #expect(headerWrites.isEmpty)
      #expect(ImageVerifier(bench.bytes).check().errors.isEmpty)
    }
  }

  @Test("If the bit cannot be written, no table is")
  func withoutTheBitNoTableIsWritten() throws {
    let bench = bench()
    try bench.host.run {
      let image = try await bench.open()
      await self.write(bench, image, cluster: 3)
      let before = bench.recording.events.count
      bench.faulty.fault = Fault(.write, number: 1, errno: .io)
      await #expect(throws: ImageError.self) { try await image.flush() }
      let done = self.events(bench, from: before).filter { $0.kind == .write && !$0.failed }
      #expect(done.isEmpty)
      bench.faulty.fault = nil
      let later = bench.recording.events.count
      try await image.flush()
      #expect(self.events(bench, from: later).first?.offset == 0, "a table before the bit")
      #expect(self.isDirty(bench.bytes))
      try await image.close()
    }
    #expect(!isDirty(bench.bytes))
    #expect(ImageVerifier(bench.bytes).check().errors.isEmpty)
  }

  @Test("A wish for refcounts, or for a clean image, outlives a round that failed")
  func wishesOutliveAFailedRound() throws {
    let bench = bench()
    try bench.host.run {
      let image = try await bench.open()
      await self.write(bench, image, cluster: 3)
      try await image.flush()
      #expect(image.allocator.refcounts.cache.dirtyCount > 0)
      await self.write(bench, image, cluster: 4)
      bench.faulty.fault = Fault(.write, number: 1, errno: .io)
      await #expect(throws: ImageError.self) { try await image.flusher.flush() }
      #expect(image.allocator.refcounts.cache.dirtyCount > 0)
      try await image.flush()
      #expect(image.allocator.refcounts.cache.dirtyCount == 0, "no refcounts were written")
      #expect(self.isDirty(bench.bytes))
      await self.write(bench, image, cluster: 5)
      bench.faulty.fault = Fault(.write, number: 1, errno: .io)
      await #expect(throws: ImageError.self) { try await image.flusher.clean() }
      #expect(self.isDirty(bench.bytes))
      try await image.flush()
      #expect(!self.isDirty(bench.bytes))
      #expect(ImageVerifier(bench.bytes).check().errors.isEmpty)
    }
  }
}
