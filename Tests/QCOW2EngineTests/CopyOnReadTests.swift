import BlockCore
import QCOW2Engine
import TestSupport
import Testing

/// Copy-on-read against what happens while the backing file is being read.
@Suite struct CopyOnReadTests {
  private func request(_ operation: BlockOperation, _ sector: Int, _ buffer: IOBuffer)
    -> BlockRequest
  {
    BlockRequest(
      operation, offset: GuestOffset(UInt64(sector * 512)), length: UInt64(buffer.count),
      data: buffer.data)
  }

  @Test(
    "A write that comes while its cluster is being copied is not undone by the copy",
    arguments: [12, 16], [false, true])
  func aWriteIsNotUndoneByTheCopy(clusterBits: Int, isExtended: Bool) throws {
    var builder = ImageBuilder()
    builder.clusterBits = isExtended ? max(clusterBits, 14) : clusterBits
    builder.size = 1 << 20
    builder.features.backing = .equal
    builder.features.isExtended = isExtended
    let bench = Bench(builder, schedule: nil)
    bench.options.copyOnRead = true
    let gated = GatedFile(bench.files[2])
    // Reader and writer meet in one subcluster of every size.
    let (read, written) = (40, isExtended && clusterBits == 12 ? 40 : 41)
    try bench.host.run {
      let image = try await bench.open(
        Array(bench.files[..<2]) + [gated], options: bench.options)
      gated.gate = 0..<(1 << 20)
      func settle() async { for _ in 0..<60 { await bench.host.complete("tick") } }
      await withTaskGroup(of: Void.self) { group in
        group.addTask {
          let buffer = IOBuffer(count: 512)
          let found = await image.serve(self.request(.read, read, buffer), worker: 0, slot: 0)
          #expect(found == .done)
          withExtendedLifetime(buffer) {}
        }
        while gated.held.isEmpty { await settle() }
        let readsBefore = gated.held.count
        group.addTask {
          let buffer = IOBuffer(count: 512)
          SectorPattern.fill(buffer.base, change: 77, sector: written)
          let done = await image.serve(self.request(.write, written, buffer), worker: 0, slot: 1)
          #expect(done == .done)
          withExtendedLifetime(buffer) {}
        }
        await settle()
        #expect(gated.held.count == readsBefore, "the write did not wait for the copy")
        gated.gate = nil
      }
      try await image.close()
    }
    let verifier = bench.verifier()
    let found = verifier.sector(written).flatMap { SectorPattern.change(in: $0, sector: written) }
    #expect(found == 77)
    #expect(verifier.check().errors.isEmpty)
  }
}
