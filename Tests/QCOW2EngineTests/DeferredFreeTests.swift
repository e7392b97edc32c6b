import BlockCore
import Synchronization
import TestSupport
import Testing

@testable import QCOW2Engine

/// A freed cluster on its way: not punched and not reused too early [RACE-2, RACE-3, RACE-4].
@Suite struct DeferredFreeTests {
  private func bench() -> Bench {
    var builder = ImageBuilder()
    builder.clusterBits = 12
    builder.size = 1 << 20
    for cluster in 0..<8 { builder.mappings[cluster] = .data }
    let bench = Bench(builder, schedule: nil, isImmediate: true)
    bench.options.dirtyAgeMilliseconds = 1_000_000
    return bench
  }

  private func discard(_ image: Image, _ cluster: Int) async {
    let request = BlockRequest(
      .discard, offset: GuestOffset(UInt64(cluster) << 12), length: 4096)
    #expect(await image.serve(request, worker: 0, slot: 1).errno == nil)
  }

  private func punches(_ bench: Bench) -> [HostEvent] {
    bench.recording.events.filter { $0.kind == .punch }
  }

  /// Plans a request on guest cluster 2 and leaves it in flight.
  private func leaveInFlight(_ image: Image, _ operation: BlockOperation, _ data: IOBuffer)
    -> UInt64
  {
    let request = BlockRequest(
      operation, offset: GuestOffset(2 << 12), length: 4096, data: data.data)
    return withUnsafeTemporaryAllocation(of: HostTransfer.self, capacity: 4) { plan in
      guard case .transfers(1) = image.plan(request, worker: 0, slot: 0, into: plan) else {
        Issue.record("the hit path did not take the request")
        return 0
      }
      return plan[0].hostOffset.bytes
    }
  }

  @Test("A freed cluster is not punched before its removal is durable")
  func notPunchedBeforeDurable() throws {
    let bench = bench()
    try bench.host.run {
      let image = try await bench.open()
      await self.discard(image, 2)
      await image.maintain()
      #expect(self.punches(bench).isEmpty)
      try await image.flush()
      await image.maintain()
      #expect(self.punches(bench).count == 1)
      try await image.close()
    }
    #expect(ImageVerifier(bench.bytes).check().errors.isEmpty)
  }

  @Test(
    "A freed cluster is neither punched nor reused while an older transfer may run",
    arguments: [BlockOperation.read, .write])
  func notReusedUnderAnOlderTransfer(operation: BlockOperation) throws {
    let bench = bench()
    try bench.host.run {
      let image = try await bench.open()
      let data = IOBuffer(count: 4096)
      // Make the slice resident: the hit path loads nothing.
      #expect(
        await image.serve(
          BlockRequest(.read, offset: GuestOffset(2 << 12), length: 4096, data: data.data),
          worker: 0, slot: 0
        ).errno == nil)
      let host = self.leaveInFlight(image, operation, data)
      await self.discard(image, 2)
      for _ in 0..<3 {
        try await image.flush()
        await image.maintain()
      }
      #expect(self.punches(bench).isEmpty)
      let before = bench.recording.events.count
      let buffer = IOBuffer(count: 200 << 12)
      let request = BlockRequest(
        .write, offset: GuestOffset(10 << 12), length: UInt64(buffer.count), data: buffer.data)
      #expect(await image.serve(request, worker: 0, slot: 1).errno == nil)
      for event in bench.recording.events[before...] where event.isChange {
        #expect(!event.range.contains(host), "\(event.kind) at \(event.offset)")
      }
      _ = image.finish(worker: 0, slot: 0, failed: false)
      await image.maintain()
      #expect(self.punches(bench).map(\.offset) == [host])
      try await image.close()
    }
    #expect(ImageVerifier(bench.bytes).check().errors.isEmpty)
  }

  @Test("A request that began after the removal does not hold a cluster back")
  func laterRequestsDoNotHoldBack() throws {
    let bench = bench()
    try bench.host.run {
      let image = try await bench.open()
      await self.discard(image, 5)
      try await image.flush()
      let data = IOBuffer(count: 4096)
      _ = self.leaveInFlight(image, .read, data)
      await image.maintain()
      #expect(self.punches(bench).count == 1)
      _ = image.finish(worker: 0, slot: 0, failed: false)
    }
  }

  @Test("A table in the place of an older table is not seen through the older one's slices")
  func aNewTableIsNotSeenThroughOldSlices() throws {
    var builder = ImageBuilder()
    builder.clusterBits = 9
    builder.size = 256 << 10
    for cluster in 0..<8 { builder.mappings[cluster] = .data }
    let bench = Bench(builder, schedule: nil, isImmediate: true)
    bench.options.workers = 2
    // Not COPIED although unshared: the first write moves the table and lets this one go.
    let entry = Int(bench.bytes.be64(40))
    let old = bench.bytes.be64(entry) & ~(1 << 63)
    bench.bytes.put64(old, entry)
    try bench.host.run {
      let image = try await bench.open()
      let workers = (0..<2).map { MiniWorker(target: image, file: bench.file, worker: $0) }
      let data = IOBuffer(count: 8 * 512)
      func request(_ operation: BlockOperation, _ sector: Int, _ count: Int) -> BlockRequest {
        BlockRequest(
          operation, offset: GuestOffset(UInt64(sector * 512)), length: UInt64(count * 512),
          data: data.data.slice(0, count * 512))
      }
      #expect(await workers[0].perform(request(.read, 0, 8), slot: 0) == nil)
      #expect(await workers[0].perform(request(.write, 0, 1), slot: 0) == nil)
      try await image.flush()
      await image.maintain()
      // The other worker's arena is empty: its first cluster is the lowest free one.
      #expect(await workers[1].perform(request(.write, 64 * 4 + 3, 1), slot: 0) == nil)
      #expect(await workers[1].perform(request(.read, 64 * 4 + 4, 4), slot: 0) == nil)
      for sector in 0..<4 {
        #expect(SectorPattern.change(in: data.base + sector * 512, sector: sector) == 0)
      }
      try await image.close()
    }
    #expect(bench.bytes.be64(entry + 4 * 8) == old | 1 << 63, "the place was not reused")
    #expect(ImageVerifier(bench.bytes).check().errors.isEmpty)
  }

  @Test(
    "What a failed round let go is neither punched nor handed out",
    arguments: [Fault.Kind.write, .sync])
  func aFailedRoundFreesNothing(kind: Fault.Kind) throws {
    let bench = bench()
    try bench.host.run {
      let image = try await bench.open()
      let cluster = bench.bytes.be64(
        Int(bench.bytes.be64(Int(bench.bytes.be64(40))) & 0x00ff_ffff_ffff_fe00) + 2 * 8)
      let host = HostCluster((cluster & 0x00ff_ffff_ffff_fe00) >> 12)
      await self.discard(image, 2)
      bench.faulty.fault = Fault(kind, number: 1, errno: .io)
      await #expect(throws: ImageError.self) { try await image.flush() }
      bench.faulty.fault = nil
      #expect(image.frees.clusterCounts == (1, 0))
      for _ in 0..<2 { await image.maintain() }
      #expect(self.punches(bench).isEmpty)
      #expect(try await image.allocator.refcount(of: host) == 1)
      // A failed barrier is for good.
      if kind == .sync { return }
      try await image.flush()
      await image.maintain()
      #expect(self.punches(bench).map(\.offset) == [host.number << 12])
      #expect(try await image.allocator.refcount(of: host) == 0)
      try await image.close()
    }
    #expect(ImageVerifier(bench.bytes).check().errors.isEmpty)
  }

  @Test("A failed data write, or a failed flush, leaks nothing in the end", arguments: 1...8)
  func failuresLeakNothing(number: Int) throws {
    let bench = bench()
    try bench.host.run {
      let image = try await bench.open()
      let driver = MiniWorker(target: image, file: bench.file, worker: 0)
      let buffer = IOBuffer(count: 8192)
      await self.discard(image, 2)
      bench.faulty.fault = Fault(.write, number: number, errno: .io)
      for cluster in [20, 1, 2] {
        let request = BlockRequest(
          .write, offset: GuestOffset(UInt64(cluster) << 12), length: 8192, data: buffer.data)
        _ = await driver.perform(request, slot: 0)
        await self.discard(image, 5)
        _ = try? await image.flush()
      }
      bench.faulty.fault = nil
      try await image.close()
    }
    let report = ImageVerifier(bench.bytes).check()
    #expect(report.errors.isEmpty && report.leaks == 0, "\(report)")
  }

  @Test("Space freed by discards is used again, so the file does not grow")
  func freedSpaceIsUsedAgain() throws {
    let bench = bench()
    try bench.host.run {
      let image = try await bench.open()
      let driver = MiniWorker(target: image, file: bench.file, worker: 0)
      let buffer = IOBuffer(count: 256 << 10)
      var longest = 0
      for round in 0..<20 {
        let offset = GuestOffset(UInt64(round % 4) << 18)
        let write = BlockRequest(
          .write, offset: offset, length: UInt64(buffer.count), data: buffer.data)
        #expect(await driver.perform(write, slot: 0) == nil)
        let discard = BlockRequest(.discard, offset: offset, length: UInt64(buffer.count))
        #expect(await driver.perform(discard, slot: 0) == nil)
        try await image.flush()
        await image.maintain()
        if round == 4 { longest = bench.bytes.length }
      }
      #expect(bench.bytes.length <= longest + (512 << 10))
      try await image.close()
    }
    #expect(ImageVerifier(bench.bytes).check().leaks == 0)
  }

  @Test("A release that fails half-way is not done twice, and the others are done")
  func aReleaseFailsHalfWay() throws {
    // A slice of refcounts has 64 of them: the first run of clusters lies in two.
    var builder = ImageBuilder()
    builder.clusterBits = 9
    builder.refcountOrder = 6
    builder.size = 64 << 10
    for cluster in 0..<64 { builder.mappings[cluster] = .data }
    let bench = Bench(builder, schedule: nil, isImmediate: true)
    bench.options.dirtyAgeMilliseconds = 1_000_000
    let table = Int(bench.bytes.be64(Int(bench.bytes.be64(40))) & 0x00ff_ffff_ffff_fe00)
    let hosts = (0..<64).map { bench.original.be64(table + $0 * 8) & 0x00ff_ffff_ffff_fe00 }
    let behind = hosts[50...].filter { $0 >= 64 * 512 }
    #expect(behind.count > 1 && behind.count < 14)
    try bench.host.run {
      let image = try await bench.open()
      for (first, count) in [(50, 14), (2, 1)] {
        let request = BlockRequest(
          .discard, offset: GuestOffset(UInt64(first * 512)), length: UInt64(count * 512))
        #expect(await image.serve(request, worker: 0, slot: 0) == .done)
      }
      try await image.flush()
      // The second slice of refcounts cannot be read.
      bench.faulty.fault = Fault(.read, number: 2, errno: .io)
      await image.maintain()
      #expect(bench.faulty.failures == [.read])
      bench.faulty.fault = nil
      await image.maintain()
      #expect(image.health.allowsWrites, "taken for corruption")
      #expect(self.punches(bench).last?.offset == hosts[2], "the other run was forgotten")
      try await image.close()
    }
    let report = ImageVerifier(bench.bytes).check()
    #expect(report.errors.isEmpty && report.leaks == behind.count, "\(report)")
  }

  @Test("A cluster that a snapshot shares is let go, and not punched")
  func aSharedClusterIsNotPunched() throws {
    var builder = ImageBuilder()
    builder.clusterBits = 12
    builder.size = 1 << 20
    builder.hasSnapshot = true
    for cluster in 0..<8 { builder.mappings[cluster] = .data }
    let bench = Bench(builder, schedule: nil, isImmediate: true)
    bench.options.dirtyAgeMilliseconds = 1_000_000
    try bench.host.run {
      let image = try await bench.open()
      await self.discard(image, 2)
      try await image.flush()
      await image.maintain()
      #expect(image.allocator.returned.load(ordering: .relaxed) > 0, "nothing was let go")
      #expect(self.punches(bench).isEmpty)
      try await image.close()
    }
    let verifier = ImageVerifier(bench.bytes)
    #expect(verifier.check().errors.isEmpty && bench.snapshotProblems(verifier).isEmpty)
  }
}
