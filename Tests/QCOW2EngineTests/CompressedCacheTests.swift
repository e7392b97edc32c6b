import BlockCore
import QCOW2Engine
import TestSupport
import Testing

/// Decompressed clusters that a worker keeps, against the reuse of their place in the host file.
@Suite struct CompressedCacheTests {
  private static let cluster = 4096

  private func request(
    _ operation: BlockOperation, _ cluster: Int, _ buffer: IOBuffer? = nil
  ) -> BlockRequest {
    // A worker keeps what it decompresses for a part of a cluster only: reads are of a sector.
    let length = operation == .read ? 512 : Self.cluster
    return BlockRequest(
      operation, offset: GuestOffset(UInt64(cluster * Self.cluster)), length: UInt64(length),
      data: buffer?.data.slice(0, length) ?? .none)
  }

  private func pattern(_ change: UInt32, _ cluster: Int) -> IOBuffer {
    let buffer = IOBuffer(count: Self.cluster)
    for sector in 0..<8 {
      SectorPattern.fill(buffer.base + sector * 512, change: change, sector: cluster * 8 + sector)
    }
    return buffer
  }

  @Test("A place that was released and compressed into anew is decompressed anew")
  func aReleasedPlaceIsDecompressedAnew() throws {
    var builder = ImageBuilder()
    builder.clusterBits = 12
    builder.size = 1 << 20
    builder.mappings = [3: .compressed]
    let bench = Bench(builder, schedule: nil, isImmediate: true)
    bench.options.compressesWrites = true
    bench.options.dirtyAgeMilliseconds = 1_000_000
    let table = Int(bench.bytes.be64(Int(bench.bytes.be64(40))) & 0x00ff_ffff_ffff_fe00)
    let place = bench.bytes.be64(table + 3 * 8) & 0xffff_ffff
    try bench.host.run {
      let image = try await bench.open()
      func serve(_ operation: BlockOperation, _ buffer: IOBuffer? = nil) async {
        let done = await image.serve(self.request(operation, 3, buffer), worker: 0, slot: 0)
        #expect(done == .done)
      }
      let buffer = IOBuffer(count: Self.cluster)
      await serve(.read, buffer)
      #expect(SectorPattern.change(in: buffer.base, sector: 24) != 77)
      await serve(.discard)
      try await image.flush()
      await image.maintain()
      let new = self.pattern(77, 3)
      await serve(.write, new)
      await serve(.read, buffer)
      #expect(SectorPattern.change(in: buffer.base, sector: 24) == 77, "what was there before")
      withExtendedLifetime((buffer, new)) {}
      try await image.close()
    }
    let entry = bench.bytes.be64(table + 3 * 8)
    #expect(entry >> 62 == 1 && entry & 0xffff_ffff == place, "the place was not used anew")
  }

  /// A cluster compressed at a place, which another compressed cluster takes over.
  ///
  /// A reader has begun, and waits for a table, when the place is given up, taken and written anew.
  @Test(
    "A reader never takes what it had decompressed from a place that was reused since",
    arguments: 1...24 as ClosedRange<UInt64>)
  func aReusedPlaceIsReadAnew(schedule: UInt64) throws {
    var builder = ImageBuilder()
    builder.clusterBits = 12
    builder.size = 6 << 20
    builder.mappings = [3: .compressed, 600: .data]
    let bench = Bench(builder, schedule: schedule)
    bench.options.compressesWrites = true
    bench.options.cacheBytes = 4096
    bench.options.slotsPerWorker = 8
    bench.options.dirtyAgeMilliseconds = 1_000_000
    let table = bench.bytes.be64(Int(bench.bytes.be64(40))) & 0x00ff_ffff_ffff_fe00
    let place = bench.bytes.be64(Int(table) + 3 * 8) & 0xffff_ffff
    let gated = GatedFile(bench.recording)
    try bench.host.run {
      let image = try await bench.open([gated], options: bench.options)
      let buffer = IOBuffer(count: Self.cluster)
      #expect(await image.serve(self.request(.read, 3, buffer), worker: 0, slot: 0).errno == nil)
      #expect(await image.serve(self.request(.discard, 3), worker: 0, slot: 0).errno == nil)
      try await image.flush()
      // The other table takes the only slot of the cache.
      #expect(await image.serve(self.request(.read, 600, buffer), worker: 0, slot: 0).errno == nil)
      withExtendedLifetime(buffer) {}
      gated.gate = table..<(table + 4096)
      await withTaskGroup(of: Void.self) { group in
        func settle() async { for _ in 0..<60 { await bench.host.complete("tick") } }
        group.addTask {
          // Loads the table, and is held.
          let other = IOBuffer(count: Self.cluster)
          #expect(await image.serve(self.request(.read, 9, other), worker: 0, slot: 1).errno == nil)
          withExtendedLifetime(other) {}
        }
        while gated.held.isEmpty { await settle() }
        group.addTask {
          let read = IOBuffer(count: Self.cluster)
          #expect(await image.serve(self.request(.read, 3, read), worker: 0, slot: 2).errno == nil)
          let found = SectorPattern.change(in: read.base, sector: 24)
          #expect(found == 0 || found == 77, "the old cluster: change \(String(describing: found))")
        }
        await settle()
        await image.maintain()
        group.addTask {
          let data = self.pattern(77, 3)
          let request = self.request(.write, 3, data)
          #expect(await image.serve(request, worker: 0, slot: 3).errno == nil)
          withExtendedLifetime(data) {}
        }
        await settle()
        gated.gate = nil
      }
      try await image.close()
    }
    let entry = bench.bytes.be64(Int(table) + 3 * 8)
    #expect(entry >> 62 == 1 && entry & 0xffff_ffff == place, "the place was not used anew")
    #expect(bench.verifier().check().errors.isEmpty)
  }

  @Test(
    "No host cluster is shared by more compressed clusters than its refcount can say",
    arguments: 0...2)
  func refcountsOfSharedClusters(order: Int) throws {
    var builder = ImageBuilder()
    builder.clusterBits = 12
    builder.refcountOrder = order
    builder.size = 1 << 20
    let bench = Bench(builder, schedule: nil, isImmediate: true)
    bench.options.compressesWrites = true
    try bench.host.run {
      let image = try await bench.open()
      for cluster in 0..<40 {
        let data = self.pattern(7, cluster)
        let request = self.request(.write, cluster, data)
        #expect(await image.serve(request, worker: 0, slot: 0) == .done)
        withExtendedLifetime(data) {}
      }
      try await image.close()
    }
    let verifier = bench.verifier()
    let report = verifier.check()
    #expect(report.errors.isEmpty && report.leaks == 0, "\(report)")
    for sector in 0..<320 {
      let found = verifier.sector(sector).flatMap { SectorPattern.change(in: $0, sector: sector) }
      #expect(found == 7, "sector \(sector)")
    }
  }
}
