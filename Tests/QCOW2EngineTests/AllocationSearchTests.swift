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
    for start in stride(from: 0, to: Self.used / 512, by: 128) {
      #expect(await bench.write(start..<(start + 128), by: driver) == nil)
    }
    try await image.close()
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
      let discard = BlockRequest(.discard, offset: GuestOffset(6 << 20), length: 8192)
      let change = bench.model.begin(12288..<12304, isZero: true)
      #expect(await image.serve(discard, worker: 0, slot: 0) == .done)
      bench.model.end(change)
      try await image.close()

      image = try await bench.open()
      bench.faulty.fault = nil
      // Tables that have moved left a few free clusters at the start.
      var taken: [ClusterRun] = []
      while taken.last?.isFresh != true && taken.count < 8 {
        taken.append(try await image.allocator.reserve(upTo: 8))
        #expect(taken.last.map { $0.start < 1000 || $0.start >= end } == true, "\(taken)")
      }
      #expect(taken.last?.isFresh == true)
      #expect(bench.faulty.counts[.read, default: 0] <= 36, "\(bench.faulty.counts)")
      let hole = try await image.allocator.reserve(upTo: 16)
      #expect(hole.end <= end && !hole.isFresh, "\(hole), end \(end)")
      taken.append(hole)
      for run in taken { try await image.allocator.unreserve(run) }
      try await image.close()
    }
    #expect(bench.problems() == [])
  }

  @Test("A run of clusters is inside the file, or behind its end, and never both")
  func aRunIsInsideOrBehind() throws {
    var builder = ImageBuilder()
    builder.clusterBits = 9
    let bench = Bench(builder, schedule: nil, isImmediate: true)
    let end = (bench.bytes.length + 511) / 512
    // Three clusters with bytes of somebody's at the end of the file, which no refcount counts.
    bench.bytes.fill(0xee, count: 3 * 512, at: end * 512)
    try bench.host.run {
      let image = try await bench.open()
      let inside = try await image.allocator.reserve(upTo: 16)
      #expect(inside == ClusterRun(start: HostCluster(UInt64(end)), count: 3, isFresh: false))
      let behind = try await image.allocator.reserve(upTo: 16)
      #expect(behind.start >= inside.end && behind.isFresh)
      #expect(bench.bytes.length >= Int(behind.end.number) * 512)
      for run in [inside, behind] { try await image.allocator.unreserve(run) }
      try await image.close()
    }
    let report = ImageVerifier(bench.bytes).check()
    #expect(report.errors.isEmpty && report.leaks == 0, "\(report)")
  }
}
