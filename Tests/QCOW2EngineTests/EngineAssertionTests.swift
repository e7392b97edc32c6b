import BlockCore
import QCOW2Format
import Testing
import TestSupport

@testable import QCOW2Engine

/// What comments promise traps in debug builds when it is broken.
struct EngineAssertionTests {
  @Test func aMutexIsGivenBackByItsOwnerOnly() async {
    await #expect(processExitsWith: .failure) { AsyncMutex().release() }
    await #expect(processExitsWith: .failure) { AsyncMutex().assertHeld() }
  }

  @Test func aRangeIsGivenBackByItsHolderOnly() async {
    await #expect(processExitsWith: .failure) { InFlightRanges(groupBits: 4).release(3..<4) }
    await #expect(processExitsWith: .failure) {
      _ = InFlightRanges(groupBits: 4).leave(3..<4, isPublished: false)
    }
  }

  @Test func theGateHasOneCloser() async {
    await #expect(processExitsWith: .failure) { RequestGate().open() }
    await #expect(processExitsWith: .failure) {
      let (gate, stamps) = (RequestGate(), RequestStamps(workers: 1, slotsPerWorker: 1))
      await gate.close(stamps)
      await gate.close(stamps)
    }
  }

  @Test func refcountsChangeUnderTheAllocatorsMutex() async {
    await #expect(processExitsWith: .failure) {
      try Self.withImage { image in try await image.allocator.decrement(0..<1) }
    }
  }

  @Test func refcountStructuresGrowUnderTheAllocatorsMutex() async {
    await #expect(processExitsWith: .failure) {
      try Self.withImage { image in try await image.allocator.ensureBlock(for: 0) }
    }
    await #expect(processExitsWith: .failure) {
      try Self.withImage { image in
        try await image.allocator.growTable(
          toCover: UInt64(image.allocator.refcounts.table.count))
      }
    }
    await #expect(processExitsWith: .failure) {
      try Self.withImage { image in try await image.allocator.provideStorage(ofBlockFor: 0) }
    }
  }

  @Test func bitmapsChangeUnderTheTrackersMutex() async {
    await #expect(processExitsWith: .failure) {
      try Self.withImage(BitmapShape.small.bench(schedule: nil)) { image in
        try await image.changes?.setDurably([])
      }
    }
    await #expect(processExitsWith: .failure) {
      try Self.withImage(BitmapShape.small.bench(schedule: nil)) { image in
        _ = try await image.changes?.writeExact(atMost: 1)
      }
    }
  }

  @Test func writesKeepToTheAlignmentOfTheFile() async {
    await #expect(processExitsWith: .failure) {
      let bench = Bench(
        ImageBuilder(), schedule: nil, traits: HostFileTraits(offsetAlignment: 512),
        isImmediate: true)
      try Self.withImage(bench) { image in
        let sector = IOBuffer(count: 100)
        try await image.allocator.storage.write(from: sector, at: HostOffset(4))
      }
    }
  }

  private static func withImage(
    _ bench: Bench = Bench(ImageBuilder(), schedule: nil, isImmediate: true),
    _ body: @escaping @Sendable (Image) async throws -> Void
  ) throws {
    try bench.host.run { try await body(bench.open()) }
  }

  @Test func entriesAreChangedByTheHolderOfTheirClustersOnly() async {
    await #expect(processExitsWith: .failure) {
      var builder = ImageBuilder()
      builder.mappings[0] = .data
      let bench = Bench(builder, schedule: nil, isImmediate: true)
      try bench.host.run {
        let image = try await bench.open()
        let part = image.slices.part(from: GuestOffset(0), length: 512)
        let table = try #require(image.tables.place(0).table)
        try await image.mapping.withEntries(part, table: table) { _ in }
      }
    }
  }

  @Test func anEntryLiesInsideItsTable() async {
    await #expect(processExitsWith: .failure) {
      let bytes = [UInt8](repeating: 0, count: 64)
      let table = try bytes.withUnsafeBytes {
        try DiskTable(offset: HostOffset(0), bytes: $0, count: 8)
      }
      table.store(1, at: 8)
    }
  }
}
