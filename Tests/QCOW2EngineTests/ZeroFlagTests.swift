import BlockCore
import QCOW2Engine
import TestSupport
import Testing

/// The entries that discards and zeroes leave in images without a backing file, which they may get later.
@Suite struct ZeroFlagTests {
  struct Case: Sendable {
    let version: Int
    let operation: BlockOperation
    /// Of a cluster that had data, and of one that had none.
    let entries: [UInt64]
  }

  private static let cases = [
    Case(version: 3, operation: .discard, entries: [1, 0]),
    Case(version: 3, operation: .writeZeroes, entries: [1, 1]),
    Case(version: 2, operation: .discard, entries: [0, 0]),
    Case(version: 2, operation: .writeZeroes, entries: [0, 0]),
  ]

  @Test("Version 3 keeps a zero flag where there was data, version 2 has none", arguments: cases)
  func zeroFlags(item: Case) throws {
    var builder = ImageBuilder()
    builder.clusterBits = 12
    builder.version = item.version
    builder.size = 1 << 20
    builder.mappings = [0: .data, 5: .data]
    let bench = Bench(builder, schedule: nil, isImmediate: true)
    try bench.host.run {
      let image = try await bench.open()
      let driver = MiniWorker(target: image, file: bench.file, worker: 0)
      let request = BlockRequest(item.operation, offset: GuestOffset(0), length: 2 * 4096)
      #expect(await driver.perform(request, slot: 0) == nil)
      try await image.close()
    }
    let table = Int(bench.bytes.be64(Int(bench.bytes.be64(40))) & 0x00ff_ffff_ffff_fe00)
    #expect([bench.bytes.be64(table), bench.bytes.be64(table + 8)] == item.entries)
    let report = ImageVerifier(bench.bytes).check()
    #expect(report.errors.isEmpty && report.leaks == 0, "\(report)")
  }
}
