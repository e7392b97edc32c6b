import BlockCore
import QCOW2Format
import TestSupport
import Testing

@testable import QCOW2Engine

/// Writes into new clusters on the hit path: what they cost, and what may come between their plan
/// and their end.
@Suite struct FreshWriteTests {
  private static let cluster = 4096

  private func bench(
    _ schedule: UInt64? = nil, traits: HostFileTraits = HostFileTraits(),
    change: (inout ImageBuilder) -> Void = { _ in }
  ) -> Bench {
    var builder = ImageBuilder()
    builder.clusterBits = 12
    builder.size = 8 << 20
    change(&builder)
    let bench = Bench(builder, schedule: schedule, traits: traits, isImmediate: schedule == nil)
    bench.options.slotsPerWorker = 64
    bench.options.dirtyAgeMilliseconds = 1_000_000
    return bench
  }

  private func write(_ sector: Int, _ data: IOBuffer) -> BlockRequest {
    BlockRequest(
      .write, offset: GuestOffset(UInt64(sector * 512)), length: UInt64(data.count),
      data: data.data)
  }

  private func data(_ sector: Int, _ count: Int = 1, change: UInt32 = 7) -> IOBuffer {
    let buffer = IOBuffer(count: count * 512)
    for index in 0..<count {
      SectorPattern.fill(buffer.base + index * 512, change: change, sector: sector + index)
    }
    return buffer
  }

  /// Plans without carrying anything out; nil if the hit path declines.
  private func plan(_ image: Image, _ request: BlockRequest, slot: Int) -> HostTransfer? {
    withUnsafeTemporaryAllocation(of: HostTransfer.self, capacity: 8) { plan in
      guard case .transfers(1) = image.plan(request, worker: 0, slot: slot, into: plan) else {
        return nil
      }
      return plan[0]
    }
  }

  /// Opens an image with an L2 table at its start and a full arena.
  private func opened(_ bench: Bench) async throws -> Image {
    let image = try await bench.open()
    let buffer = data(0)
    #expect(await image.serve(write(0, buffer), worker: 0, slot: 0) == .done)
    return image
  }

  private func expectSectors(_ bench: Bench, _ sectors: [Int: UInt32]) {
    let verifier = ImageVerifier(bench.bytes)
    let report = verifier.check()
    #expect(report.errors.isEmpty && report.leaks == 0, "\(report)")
    for (sector, change) in sectors {
      // Nil for bytes that are no pattern.
      let found: UInt32? =
        if let bytes = verifier.sector(sector) {
          SectorPattern.change(in: bytes, sector: sector)
        } else { 0 }
      #expect(found == change, "sector \(sector)")
    }
  }

  /// Writes a sector inside each of twenty new clusters, and returns what that did to the host file.
  private func twentyWrites(_ bench: Bench, _ image: Image) async -> [HostEvent] {
    let driver = MiniWorker(target: image, file: bench.file, worker: 0)
    let before = bench.recording.events.count
    for cluster in 1...20 {
      let buffer = data(cluster * 8 + 3)
      #expect(await driver.perform(write(cluster * 8 + 3, buffer), slot: 1) == nil)
    }
    return Array(bench.recording.events[before...])
  }

  @Test("An allocating write costs one host write of the guest's data and nothing else")
  func oneHostWrite() throws {
    let bench = bench()
    try bench.host.run {
      let image = try await self.opened(bench)
      let events = await self.twentyWrites(bench, image)
      #expect(events.count == 20 && events.allSatisfy { $0.kind == .write && $0.length == 512 })
      try await image.close()
    }
    expectSectors(bench, [3 * 8 + 3: 7, 20 * 8 + 3: 7, 20 * 8 + 2: 0, 20 * 8 + 4: 0])
  }

  @Test(
    "So does one on a device that clears at once, if the host is to hear of discards",
    arguments: [true, false], [true, false])
  func oneHostWriteOnADevice(clears: Bool, discards: Bool) throws {
    let bench = bench(traits: HostFileTraits(isBlockDevice: true))
    bench.memory.clears = clears
    bench.options.discardsToHost = discards
    bench.bytes.fill(0xee, count: 4 << 20, at: bench.bytes.length)
    var sectors: [Int: UInt32] = [:]
    for cluster in 1...20 { sectors[cluster * 8 + 3] = 7 }
    try bench.host.run {
      let image = try await self.opened(bench)
      let events = await self.twentyWrites(bench, image)
      let isOneEach = events.count == 20 && events.allSatisfy { $0.length == 512 }
      #expect(isOneEach == (clears && discards))
      try await image.close()
    }
    // Around the data there are zeros, not what the device had there.
    for sector in 8..<(21 * 8) where sectors[sector] == nil { sectors[sector] = 0 }
    expectSectors(bench, sectors)
  }

  @Test("A large write into new clusters is one host write")
  func largeWritesAreOneHostWrite() throws {
    let bench = bench()
    try bench.host.run {
      let image = try await self.opened(bench)
      let driver = MiniWorker(target: image, file: bench.file, worker: 0)
      let before = bench.recording.events.count
      // Not from the start of a cluster, not to the end of one.
      let buffer = self.data(8 * 8 + 3, 20 * 8)
      #expect(await driver.perform(self.write(8 * 8 + 3, buffer), slot: 1) == nil)
      #expect(bench.recording.events[before...].map(\.length) == [20 * 8 * 512])
      try await image.close()
    }
    expectSectors(bench, [8 * 8 + 2: 0, 8 * 8 + 3: 7, 28 * 8 + 2: 7, 28 * 8 + 3: 0])
  }

  @Test(
    "Two writes into one new cluster share it, whichever ends first", arguments: [[1, 2], [2, 1]])
  func writesShareANewCluster(order: [Int]) throws {
    let bench = bench()
    try bench.host.run {
      let image = try await self.opened(bench)
      let buffers = [self.data(80, 2), self.data(84, 2)]
      let plans = [
        self.plan(image, self.write(80, buffers[0]), slot: 1),
        self.plan(image, self.write(84, buffers[1]), slot: 2),
      ]
      let first = try #require(plans[0])
      let second = try #require(plans[1])
      #expect(second.hostOffset.bytes == first.hostOffset.bytes + 2048)
      for slot in order {
        let transfer = slot == 1 ? first : second
        try await bench.file.write(from: buffers[slot - 1].data, at: transfer.hostOffset)
        #expect(image.finish(worker: 0, slot: slot, failed: false) == .done)
      }
      withExtendedLifetime(buffers) {}
      try await image.close()
    }
    expectSectors(bench, [80: 7, 81: 7, 82: 0, 84: 7, 85: 7, 86: 0])
  }

  @Test(
    "A failed write leaves the old mapping and frees the cluster, unless another write shares it",
    arguments: [false, true], [false, true])
  func aFailedWriteLeavesTheOldMapping(isShared: Bool, otherFails: Bool) throws {
    let bench = bench()
    try bench.host.run {
      let image = try await self.opened(bench)
      let buffers = [self.data(80, 2), self.data(84, 2)]
      _ = try #require(self.plan(image, self.write(80, buffers[0]), slot: 1))
      let second = isShared ? self.plan(image, self.write(84, buffers[1]), slot: 2) : nil
      #expect((second != nil) == isShared)
      #expect(image.finish(worker: 0, slot: 1, failed: true) == .done)
      if let second {
        #expect(image.frees.isEmpty)
        try await bench.file.write(from: buffers[1].data, at: second.hostOffset)
        #expect(image.finish(worker: 0, slot: 2, failed: otherFails) == .done)
      }
      #expect(image.frees.isEmpty == (isShared && !otherFails))
      let extent = try await image.mapping.extent(at: GuestOffset(80 * 512), length: 512)
      if case .unallocated = extent {
        #expect(!isShared || otherFails)
      } else {
        #expect(isShared && !otherFails)
      }
      withExtendedLifetime(buffers) {}
      try await image.close()
    }
    expectSectors(bench, [80: 0, 84: isShared && !otherFails ? 7 : 0])
  }

  @Test(
    "Whoever waits for the range wakes when the write ends, by error or not",
    arguments: [false, true])
  func waitersWake(fails: Bool) throws {
    let bench = bench(3)
    try bench.host.run {
      let image = try await self.opened(bench)
      let buffers = [self.data(80, 2), self.data(81, 16, change: 9)]
      let first = try #require(self.plan(image, self.write(80, buffers[0]), slot: 1))
      // Overlaps the new cluster, and more: it may not join.
      #expect(self.plan(image, self.write(81, buffers[1]), slot: 2) == nil)
      let isDone = Box(0)
      await withTaskGroup(of: Void.self) { group in
        group.addTask {
          #expect(await image.serve(self.write(81, buffers[1]), worker: 0, slot: 2) == .done)
          isDone.value += 1
        }
        group.addTask {
          let discard = BlockRequest(.discard, offset: GuestOffset(80 * 512), length: 4096)
          #expect(await image.serve(discard, worker: 0, slot: 3) == .done)
          isDone.value += 1
        }
        for _ in 0..<50 { await Task.yield() }
        #expect(isDone.value == 0)
        try? await bench.file.write(from: buffers[0].data, at: first.hostOffset)
        #expect(image.finish(worker: 0, slot: 1, failed: fails) == .done)
      }
      #expect(isDone.value == 2)
      withExtendedLifetime(buffers) {}
      try await image.close()
    }
    expectSectors(bench, [88: 9, 96: 9, 97: 0])
  }

  /// A write's data is in place, and its slice is not there any more: `body` has the request, which is
  /// slot 1's, then the image is closed.
  private func whenTheSliceIsEvicted(
    _ bench: Bench, _ body: @escaping @Sendable (Image, BlockRequest) async throws -> Void
  ) throws {
    bench.options.cacheBytes = 4096
    try bench.host.run {
      let image = try await self.opened(bench)
      let buffers = [self.data(80, 2), self.data(4096)]
      let request = self.write(80, buffers[0])
      let transfer = try #require(self.plan(image, request, slot: 1))
      try await bench.file.write(from: buffers[0].data, at: transfer.hostOffset)
      // Another table's slice takes the only place.
      #expect(await image.serve(self.write(4096, buffers[1]), worker: 0, slot: 2) == .done)
      #expect(image.finish(worker: 0, slot: 1, failed: false) == .needsService)
      try await body(image, request)
      withExtendedLifetime(buffers) {}
      try await image.close()
    }
  }

  @Test("A slice that is evicted while the data is on its way is loaded again")
  func theSliceIsEvicted() throws {
    let bench = bench()
    try whenTheSliceIsEvicted(bench) { image, request in
      #expect(image.stamps.oldest() != .max, "the request must stay in flight")
      #expect(await image.serve(request, worker: 0, slot: 1) == .done)
      #expect(image.stamps.oldest() == .max)
    }
    expectSectors(bench, [80: 7, 81: 7, 82: 0, 4096: 7])
  }

  @Test("If the evicted slice cannot be loaded, the write fails and frees its cluster")
  func theEvictedSliceCannotBeLoaded() throws {
    let bench = bench()
    try whenTheSliceIsEvicted(bench) { image, request in
      bench.faulty.fault = Fault(.read, number: 1, errno: .io)
      #expect(await image.serve(request, worker: 0, slot: 1) == .failed(.io))
      bench.faulty.fault = nil
      #expect(!image.frees.isEmpty && image.stamps.oldest() == .max)
      // The range is free again.
      #expect(await image.serve(request, worker: 0, slot: 1) == .done)
    }
    expectSectors(bench, [80: 7, 4096: 7])
  }

  @Test("What must not go this way does not: FUA, shared clusters, a range that is held")
  func whatMustNotGoThisWay() throws {
    let bench = bench { builder in
      builder.hasSnapshot = true
      builder.mappings[4] = .data
    }
    try bench.host.run {
      let image = try await self.opened(bench)
      let buffer = self.data(80)
      var durable = self.write(80, buffer)
      durable.isFUA = true
      #expect(self.plan(image, durable, slot: 1) == nil)
      #expect(self.plan(image, self.write(32, self.data(32)), slot: 1) == nil)
      await image.inFlight.acquire(10..<11)
      #expect(self.plan(image, self.write(80, buffer), slot: 1) == nil)
      image.inFlight.release(10..<11)
      #expect(image.stamps.oldest() == .max)
      let transfer = try #require(self.plan(image, self.write(80, buffer), slot: 1))
      try await bench.file.write(from: buffer.data, at: transfer.hostOffset)
      #expect(image.finish(worker: 0, slot: 1, failed: false) == .done)
      try await image.close()
    }
    expectSectors(bench, [80: 7])
  }

  @Test("A partial write never goes into a used cluster, a whole one may")
  func usedClustersNeedWholeWrites() throws {
    let bench = bench { $0.mappings[4] = .data }
    bench.options.discardsToHost = false
    try bench.host.run {
      let image = try await bench.open()
      // Clusters used and given back: the arena's next ones hold old data.
      let old = self.data(0, 512)
      #expect(await image.serve(self.write(64, old), worker: 0, slot: 0) == .done)
      let discard = BlockRequest(.discard, offset: GuestOffset(64 * 512), length: 512 * 512)
      #expect(await image.serve(discard, worker: 0, slot: 0) == .done)
      for _ in 0..<3 {
        try await image.flush()
        await image.maintain()
      }
      try await image.arenas.returnAll()
      let first = self.data(2000)
      #expect(await image.serve(self.write(2000, first), worker: 0, slot: 0) == .done)
      #expect(self.plan(image, self.write(80, self.data(80)), slot: 1) == nil)
      let whole = self.data(96, 8)
      let transfer = try #require(self.plan(image, self.write(96, whole), slot: 1))
      try await bench.file.write(from: whole.data, at: transfer.hostOffset)
      // Nobody may join: without the whole write the cluster is not right.
      #expect(self.plan(image, self.write(97, self.data(97)), slot: 2) == nil)
      #expect(image.finish(worker: 0, slot: 1, failed: false) == .done)
      try await image.close()
    }
    expectSectors(bench, [2000: 7, 96: 7, 103: 7])
  }

  @Test("A stream of writes sends one request for the next run, before the present one is used up")
  func theNextRunComesEarly() throws {
    let bench = bench { $0.size = 64 << 20 }
    try bench.host.run {
      let image = try await self.opened(bench)
      let driver = MiniWorker(target: image, file: bench.file, worker: 0)
      var served = 0
      for cluster in 1...400 {
        let buffer = self.data(cluster * 8)
        let request = self.write(cluster * 8, buffer)
        if let transfer = self.plan(image, request, slot: 1) {
          try await bench.file.write(from: buffer.data, at: transfer.hostOffset)
          #expect(image.finish(worker: 0, slot: 1, failed: false) == .done)
        } else {
          served += 1
          #expect(await driver.perform(request, slot: 1, plans: false) == nil)
        }
        withExtendedLifetime(buffer) {}
      }
      #expect(served <= 4, "\(served) of 400")
      try await image.close()
    }
    expectSectors(bench, [8: 7, 3200: 7])
  }

  @Test("A write that fails last leaves what the first one has linked")
  func aWriteThatFailsLast() throws {
    let bench = bench()
    try bench.host.run {
      let image = try await self.opened(bench)
      let buffers = [self.data(80, 2), self.data(84, 2)]
      let first = try #require(self.plan(image, self.write(80, buffers[0]), slot: 1))
      _ = try #require(self.plan(image, self.write(84, buffers[1]), slot: 2))
      try await bench.file.write(from: buffers[0].data, at: first.hostOffset)
      #expect(image.finish(worker: 0, slot: 1, failed: false) == .done)
      #expect(image.finish(worker: 0, slot: 2, failed: true) == .done)
      #expect(image.frees.isEmpty, "a cluster in use was let go")
      withExtendedLifetime(buffers) {}
      try await image.close()
    }
    expectSectors(bench, [80: 7, 81: 7])
  }

  @Test("Over a backing file a whole cluster goes this way, alone; a part of one does not")
  func backedClustersAreWrittenAlone() throws {
    let bench = bench { $0.features.backing = .equal }
    try bench.host.run {
      let image = try await self.opened(bench)
      let (part, whole) = (self.data(81), self.data(80, 8))
      #expect(self.plan(image, self.write(81, part), slot: 1) == nil)
      _ = try #require(self.plan(image, self.write(80, whole), slot: 1))
      // Should the whole write fail, the rest of the cluster would read as zeros.
      #expect(self.plan(image, self.write(81, part), slot: 2) == nil)
      #expect(image.finish(worker: 0, slot: 1, failed: true) == .done)
      withExtendedLifetime((part, whole)) {}
      try await image.close()
    }
    #expect(bench.verifier().check().errors.isEmpty)
  }
}
