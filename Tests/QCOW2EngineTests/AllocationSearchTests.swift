import BlockCore
import TestSupport
import Testing

@testable import QCOW2Engine

/// How long an allocation looks for free space in a full image.
@Suite struct AllocationSearchTests {
  private static let used = 8 << 20

  /// An image with 8 MiB of data in clusters of 512 bytes: more than 64 slices of refcounts.
  private func fill(_ bench: Bench) async throws {
    let image = try await bench.open()
    let driver = MiniWorker(target: image, file: bench.file, worker: 0)
    let length = 64 << 10
    let buffer = IOBuffer(count: length)
    for step in 0..<(Self.used / length) {
      let sectors = (step * length / 512)..<((step + 1) * length / 512)
      let change = bench.model.begin(sectors, isZero: false)
      for sector in sectors {
        SectorPattern.fill(
          buffer.base + (sector - sectors.lowerBound) * 512, change: change, sector: sector)
      }
      let request = BlockRequest(
        .write, offset: GuestOffset(UInt64(step * length)), length: UInt64(length),
        data: buffer.data)
      #expect(await driver.perform(request, slot: 0) == nil)
      bench.model.end(change)
    }
    try await image.close()
    withExtendedLifetime(buffer) {}
  }

  @Test("The first allocation in a full image reads few refcounts; later ones find what is free")
  func theSearchIsSpreadOut() throws {
    var builder = ImageBuilder()
    builder.clusterBits = 9
    builder.size = 10 << 20
    let bench = Bench(builder, schedule: nil, isImmediate: true)
    try bench.host.run {
      try await self.fill(bench)
      var image = try await bench.open()
      let end = image.allocator.freshFrom
      // A hole of 16 clusters behind slice 40.
      let hole = BlockRequest(.discard, offset: GuestOffset(6 << 20), length: 8192)
      let change = bench.model.begin(12288..<12304, isZero: true)
      #expect(await image.serve(hole, worker: 0, slot: 0) == .done)
      bench.model.end(change)
      try await image.close()

      image = try await bench.open()
      bench.faulty.fault = nil
      let first = try await image.allocator.reserve(upTo: 8)
      #expect(first.start >= end, "space at the end, not \(first.start) below \(end)")
      #expect(first.isFresh)
      #expect(bench.faulty.counts[.read, default: 0] <= 36, "\(bench.faulty.counts)")
      let second = try await image.allocator.reserve(upTo: 16)
      #expect(second.end <= end, "the hole, not \(second.start) behind \(end)")
      #expect(second.count == 16 && !second.isFresh)
      // The search has come to the end of the file, where it stays.
      for _ in 0..<3 {
        let next = try await image.allocator.reserve(upTo: 8)
        #expect(next.isFresh)
        try await image.allocator.unreserve(next)
      }
      try await image.allocator.unreserve(first)
      try await image.allocator.unreserve(second)
      try await image.close()
    }
    #expect(bench.problems() == [])
  }
}
