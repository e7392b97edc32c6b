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

  private func bench() -> Bench {
    var builder = ImageBuilder()
    builder.clusterBits = 12
    builder.size = 1 << 20
    builder.features.backing = .equal
    let bench = Bench(builder, schedule: nil)
    bench.options.copyOnRead = true
    return bench
  }

  @Test("A copy that waited for a write does not replace what was written")
  func aCopyThatWaitedDoesNothing() throws {
    let bench = bench()
    let held = HeldFile(bench.files[0])
    try bench.host.run {
      let image = try await bench.open([held] + bench.files[1...], options: bench.options)
      let first = IOBuffer(count: 512)
      #expect(await image.serve(self.request(.write, 800, first), worker: 0, slot: 0) == .done)
      held.number = 1
      await withTaskGroup(of: Void.self) { group in
        group.addTask {
          let buffer = IOBuffer(count: 512)
          SectorPattern.fill(buffer.base, change: 77, sector: 41)
          #expect(await image.serve(self.request(.write, 41, buffer), worker: 0, slot: 1) == .done)
          withExtendedLifetime(buffer) {}
        }
        while !held.isHolding { await bench.host.complete("tick") }
        group.addTask {
          let buffer = IOBuffer(count: 512)
          #expect(await image.serve(self.request(.read, 40, buffer), worker: 0, slot: 2) == .done)
          withExtendedLifetime(buffer) {}
        }
        for _ in 0..<60 { await bench.host.complete("tick") }
        held.release()
      }
      withExtendedLifetime(first) {}
      try await image.close()
    }
    let verifier = bench.verifier()
    let found = verifier.sector(41).flatMap { SectorPattern.change(in: $0, sector: 41) }
    #expect(found == 77)
    #expect(verifier.check().errors.isEmpty)
  }

  @Test(
    "A copy that cannot be kept is no failure of the read", arguments: [Fault.Kind.write, .sync])
  func aCopyThatCannotBeKept(kind: Fault.Kind) throws {
    let bench = bench()
    try bench.host.run {
      let image = try await bench.open()
      let expected = bench.model.initial(40)
      bench.faulty.fault = Fault(kind, number: 1, errno: .io, isPermanent: true)
      if kind == .sync { _ = try? await image.flush() }
      let events = bench.recording.events.count
      let buffer = IOBuffer(count: 512)
      #expect(await image.serve(self.request(.read, 40, buffer), worker: 0, slot: 0) == .done)
      #expect(SectorPattern.change(in: buffer.base, sector: 40) == expected)
      // After a lost sync nothing may be written any more.
      if kind == .sync { #expect(bench.recording.events.count == events) }
      withExtendedLifetime(buffer) {}
    }
  }
}
