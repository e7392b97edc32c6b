import BlockCore
import QCOW2Format
import TestSupport
import Testing

@testable import QCOW2Engine

/// What a crash leaves of the arenas: most of it is free on the host file.
@Suite struct ReservationMaskTests {
  private func bench(clusterBits: Int, order: Int = 4, size: Int) -> Bench {
    var builder = ImageBuilder()
    builder.clusterBits = clusterBits
    builder.refcountOrder = order
    builder.size = size
    let bench = Bench(builder, schedule: nil, isImmediate: true)
    bench.options.dirtyAgeMilliseconds = 1_000_000
    return bench
  }

  /// Writes the first sector of a cluster, on the hit path where it can be.
  private func write(_ image: Image, _ bench: Bench, _ cluster: Int) async {
    let driver = MiniWorker(target: image, file: bench.file, worker: 0)
    let buffer = IOBuffer(count: 512)
    let sector = cluster << (bench.builder.clusterBits - 9)
    SectorPattern.fill(buffer.base, change: 5, sector: sector)
    let request = BlockRequest(
      .write, offset: GuestOffset(UInt64(sector * 512)), length: 512, data: buffer.data)
    #expect(await driver.perform(request, slot: 0) == nil)
    withExtendedLifetime(buffer) {}
  }

  private func isStored(_ verifier: ImageVerifier, _ bench: Bench, _ cluster: Int) -> Bool {
    let sector = cluster << (bench.builder.clusterBits - 9)
    return verifier.sector(sector).map { SectorPattern.change(in: $0, sector: sector) == 5 }
      ?? false
  }

  @Test("Sessions that are killed leak little, and the file does not grow from one to the next")
  func kills() throws {
    let bench = bench(clusterBits: 16, size: 1 << 30)
    var (leaks, length) = (0, 0)
    for session in 0..<5 {
      try bench.host.run {
        let image = try await bench.open()
        for cluster in 0..<30 { await self.write(image, bench, session * 30 + cluster) }
        try await image.flush()
        // In flight when it ends.
        for cluster in 0..<3 { await self.write(image, bench, 1000 + session * 3 + cluster) }
      }
      let verifier = ImageVerifier(bench.bytes)
      let report = verifier.check()
      #expect(report.errors.isEmpty, "\(report.errors)")
      #expect(report.leaks - leaks <= 32 + 3, "\(leaks), then \(report.leaks)")
      leaks = report.leaks
      for cluster in 0..<(session + 1) * 30 { #expect(self.isStored(verifier, bench, cluster)) }
      if session == 0 { length = bench.bytes.length }
    }
    // Five times what was written, and leaks; a run is 64 clusters at first.
    #expect(
      bench.bytes.length <= length + (5 * 33 + leaks) << 16, "\(length), \(bench.bytes.length)")
  }

  @Test("After each flush every entry leads to a cluster that counts, with a cache of a few slices")
  func entriesLeadToCountedClusters() throws {
    let bench = bench(clusterBits: 12, order: 6, size: 64 << 20)
    bench.options.cacheBytes = 64 << 10
    try bench.host.run {
      let image = try await bench.open()
      for cluster in 0..<2000 {
        await self.write(image, bench, cluster)
        if cluster % 7 != 0 { continue }
        try await image.flush()
        let report = ImageVerifier(bench.bytes).check()
        #expect(report.errors.isEmpty, "after \(cluster): \(report.errors.prefix(3))")
        if !report.errors.isEmpty { return }
        // Other slices, so that this one may be evicted.
        for block in 0..<6 {
          _ = try await image.allocator.refcount(of: HostCluster(UInt64(block * 512)))
        }
      }
      try await image.close()
    }
    let verifier = ImageVerifier(bench.bytes)
    let report = verifier.check()
    #expect(report.errors.isEmpty && report.leaks == 0, "\(report)")
    for cluster in 0..<2000 { #expect(self.isStored(verifier, bench, cluster)) }
  }

  @Test("Lazy refcounts that become exact count what was taken meanwhile")
  func lazyRefcounts() throws {
    let bench = lazyBench()
    try bench.host.run {
      let image = try await bench.open()
      for cluster in 0..<80 {
        await self.write(image, bench, cluster)
        try await image.flush()
        if cluster % 5 == 0 {
          // Nothing is dirty but the refcounts that the mask left out.
          try await image.flusher.clean()
          let report = ImageVerifier(bench.bytes).check()
          #expect(report.errors.isEmpty, "after \(cluster): \(report.errors.prefix(3))")
        }
      }
      try await image.close()
    }
    let report = ImageVerifier(bench.bytes).check()
    #expect(report.errors.isEmpty && report.leaks == 0, "\(report)")
  }

  private func lazyBench() -> Bench {
    var builder = ImageBuilder()
    builder.clusterBits = 16
    builder.size = 1 << 30
    builder.compatible = 1
    let bench = Bench(builder, schedule: nil, isImmediate: true)
    bench.options.dirtyAgeMilliseconds = 1_000_000
    return bench
  }

  @Test("One flush in many writes refcounts: as often as a quarter of a run has been taken")
  func fewRefcountWrites() throws {
    let bench = bench(clusterBits: 16, size: 1 << 30)
    try bench.host.run {
      let image = try await bench.open()
      await self.write(image, bench, 0)
      try await image.flush()
      let before = bench.recording.events.count { $0.kind == .sync }
      for cluster in 1..<200 {
        await self.write(image, bench, cluster)
        try await image.flush()
      }
      let syncs = bench.recording.events.count { $0.kind == .sync } - before
      // Two for each flush: data and refcounts before entries, entries. What more there is are new runs.
      #expect(syncs <= 2 * 199 + 4, "\(syncs)")
      let slices = image.allocator.refcounts.cache.dirtyCount
      #expect(slices == 0)
      try await image.close()
    }
  }
}
