import BlockCore
import QCOW2Format
import TestSupport
import Testing

@testable import QCOW2Engine

/// Queries of the mapping beside requests that free the tables they look at.
@Suite struct MapQueryTests {
  @Test("A query reads no table that was freed and used anew")
  func aQueryReadsNoReusedTable() throws {
    var builder = ImageBuilder()
    builder.clusterBits = 13
    builder.size = 16 << 20
    for cluster in 0..<4 { builder.mappings[cluster] = .data }
    let bench = Bench(builder, schedule: nil)
    bench.options.dirtyAgeMilliseconds = 1_000_000
    bench.options.cacheBytes = 8 * 4096
    // A table that counts as shared is copied by the first write, and its place is free afterwards.
    let l1 = Int(bench.bytes.be64(40))
    let table = bench.bytes.be64(l1) & 0x00ff_ffff_ffff_fe00
    bench.bytes.put64(table, l1)
    try bench.host.run {
      let gated = GatedFile(bench.files[0])
      let image = try await bench.open([gated] + bench.files[1...], options: bench.options)
      gated.limit = 1
      gated.gate = table..<(table + 8192)
      await withTaskGroup(of: Void.self) { group in
        group.addTask {
          // In the table's second slice, where nothing is allocated.
          let found = try? await image.allocation(at: GuestOffset(600 << 13), length: 8192)
          #expect(found?.isAllocated == false && found?.length == 8192)
        }
        while gated.held.isEmpty { await bench.host.complete("tick") }
        for cluster in 0..<200 {
          let buffer = IOBuffer(count: 8192)
          buffer.base.initializeMemory(as: UInt8.self, repeating: 0x40, count: buffer.count)
          let request = BlockRequest(
            .write, offset: GuestOffset(UInt64(cluster) << 13), length: 8192, data: buffer.data)
          #expect(await image.serve(request, worker: 0, slot: 0) == .done)
          withExtendedLifetime(buffer) {}
          if cluster % 20 > 0 { continue }
          for _ in 0..<2 {
            try? await image.flush()
            await image.maintain()
          }
          try? await image.arenas.returnAll()
        }
        #expect(image.stamps.oldest() != .max)
        gated.gate = nil
      }
      #expect(image.stamps.oldest() == .max)
      try await image.close()
    }
    let report = bench.verifier().check()
    #expect(report.errors.isEmpty && report.leaks == 0, "\(report)")
  }
}
