import BlockCore
import TestSupport
import Testing

@testable import QCOW2Engine

/// Each change of a table makes the background step write back, without a flush by the guest.
@Suite struct NoteDirtyTests {
  private static let cluster = 4096

  private func bench() -> Bench {
    var builder = ImageBuilder()
    builder.clusterBits = 12
    builder.size = 8 << 20
    for cluster in 0..<4 { builder.mappings[cluster] = .data }
    let bench = Bench(builder, schedule: nil, isImmediate: true)
    bench.options.slotsPerWorker = 4
    // The background step waits for nothing once it knows of a change.
    bench.options.dirtyAgeMilliseconds = 0
    return bench
  }

  private func request(_ operation: BlockOperation, _ cluster: Int, _ data: IOBuffer)
    -> BlockRequest
  {
    BlockRequest(
      operation, offset: GuestOffset(UInt64(cluster * Self.cluster)),
      length: UInt64(Self.cluster), data: operation == .write ? data.data : .none)
  }

  /// Makes a change to an image of which all is written back, and expects it to be written back.
  private func expectWriteBack(
    cacheBytes: Int? = nil,
    _ change: @escaping @Sendable (Image, Bench, IOBuffer) async throws -> Void
  ) throws {
    let bench = bench()
    bench.options.cacheBytes = cacheBytes
    let data = IOBuffer(count: Self.cluster)
    try bench.host.run {
      let image = try await bench.open()
      let first = self.request(.write, 6, data)
      #expect(await image.serve(first, worker: 0, slot: 0) == .done)
      for _ in 0..<3 { await image.maintain() }
      #expect(!image.flusher.hasDirtySlices)
      try await change(image, bench, data)
      #expect(image.flusher.hasDirtySlices, "nothing changed")
      for _ in 0..<2 { await image.maintain() }
      #expect(!image.flusher.hasDirtySlices, "the change stays in memory")
      withExtendedLifetime(data) {}
    }
  }

  @Test(
    "A write into a new cluster, on the hit path and on the slow path", arguments: [true, false])
  func aWrite(plans: Bool) throws {
    try expectWriteBack { image, bench, data in
      let driver = MiniWorker(target: image, file: bench.file, worker: 0)
      #expect(await driver.perform(self.request(.write, 9, data), slot: 0, plans: plans) == nil)
    }
  }

  @Test("A write into a new cluster whose slice was evicted meanwhile")
  func aLateWrite() throws {
    try expectWriteBack(cacheBytes: Self.cluster) { image, bench, data in
      let request = self.request(.write, 9, data)
      let transfer = withUnsafeTemporaryAllocation(of: HostTransfer.self, capacity: 8) {
        plan -> HostTransfer? in
        guard case .transfers(1) = image.plan(request, worker: 0, slot: 1, into: plan) else {
          return nil
        }
        return plan[0]
      }
      let place = try #require(transfer).hostOffset
      try await bench.file.write(from: data.data, at: place)
      // A table that is not there needs no slice: a write makes it, and takes the only place.
      #expect(await image.serve(self.request(.write, 1024, data), worker: 0, slot: 2) == .done)
      try await image.flush()
      #expect(image.finish(worker: 0, slot: 1, failed: false) == .needsService)
      #expect(await image.serve(request, worker: 0, slot: 1) == .done)
    }
  }

  @Test("A discard and a write of zeros", arguments: [BlockOperation.discard, .writeZeroes])
  func letsGo(operation: BlockOperation) throws {
    try expectWriteBack { image, _, data in
      #expect(await image.serve(self.request(operation, 2, data), worker: 0, slot: 0) == .done)
    }
  }

  @Test("Refcounts of clusters that were let go")
  func refcounts() throws {
    try expectWriteBack { image, _, data in
      #expect(await image.serve(self.request(.discard, 2, data), worker: 0, slot: 0) == .done)
      try await image.flush()
      #expect(!image.flusher.hasDirtySlices)
      // Releases what the round made durable; the step after it writes that back.
      await image.maintain()
    }
  }
}
