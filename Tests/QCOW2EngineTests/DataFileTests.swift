import BlockCore
import QCOW2Codec
import QCOW2Engine
import TestSupport
import Testing

/// Images with an external data file, and what lies beyond the end of a disk.
@Suite struct DataFileTests {
  private func request(
    _ operation: BlockOperation, _ sectors: Range<Int>, _ buffer: IOBuffer? = nil
  ) -> BlockRequest {
    BlockRequest(
      operation, offset: GuestOffset(UInt64(sectors.lowerBound * 512)),
      length: UInt64(sectors.count * 512), data: buffer?.data ?? .none)
  }

  @Test(
    "An enciphered data file is not raw: zeros are written enciphered, the bit stays")
  func anEncipheredDataFileIsNotRaw() throws {
    var builder = ImageBuilder()
    builder.clusterBits = 12
    builder.size = 256 << 10
    builder.features.dataFile = .raw
    builder.features.cipher = .host
    for cluster in 0..<8 { builder.mappings[cluster] = .data }
    let bench = Bench(builder, schedule: nil, isImmediate: true)
    try bench.host.run {
      let image = try await bench.open()
      #expect(bench.bytes.be64(88) == 2)
      for sectors in [0..<3, 16..<32, 41..<50] {
        let change = bench.model.begin(sectors, isZero: true)
        let done = await image.serve(self.request(.writeZeroes, sectors), worker: 0, slot: 0)
        #expect(done == .done)
        bench.model.end(change)
        let buffer = IOBuffer(count: sectors.count * 512)
        let read = await image.serve(self.request(.read, sectors, buffer), worker: 0, slot: 0)
        #expect(read == .done)
        #expect(
          UnsafeRawBufferPointer(start: buffer.base, count: buffer.count).allSatisfy { $0 == 0 })
      }
      try await image.close()
    }
    #expect(bench.problems().isEmpty, "\(bench.problems())")
  }

  @Test("What a longer backing file has beyond the end of the disk is not copied into the image")
  func nothingBeyondTheEndIsCopied() throws {
    var builder = ImageBuilder()
    builder.clusterBits = 12
    builder.size = (64 << 10) + 3 * 512
    builder.features.backing = .longer
    let bench = Bench(builder, schedule: nil, isImmediate: true)
    try bench.host.run {
      let image = try await bench.open()
      // The first sector of the last cluster: the copy behind it crosses the end of the disk.
      let last = Int(image.size) / 512 - 3
      let buffer = IOBuffer(count: 512)
      let change = bench.model.begin(last..<(last + 1), isZero: false)
      SectorPattern.fill(buffer.base, change: change, sector: last)
      let request = self.request(.write, last..<(last + 1), buffer)
      #expect(await image.serve(request, worker: 0, slot: 0) == .done)
      withExtendedLifetime(buffer) {}
      bench.model.end(change)
      try await image.close()
    }
    #expect(bench.problems().isEmpty)
    let verifier = bench.verifier()
    let first = bench.model.size / 512
    for sector in first..<((first + 7) / 8 * 8) {
      let found = verifier.sector(sector).flatMap { SectorPattern.change(in: $0, sector: sector) }
      #expect(found == 0, "sector \(sector)")
    }
    withExtendedLifetime(verifier) {}
  }

  @Test("A flush makes the data file durable before any table that points into it")
  func aFlushCoversTheDataFile() throws {
    var builder = ImageBuilder()
    builder.clusterBits = 12
    builder.size = 256 << 10
    builder.features.dataFile = .plain
    builder.mappings = [0: .data]
    let bench = Bench(builder, schedule: nil, isImmediate: true)
    let l2 = bench.bytes.be64(Int(bench.bytes.be64(40))) & 0x00ff_ffff_ffff_fe00
    try bench.host.run {
      let image = try await bench.open()
      let buffer = IOBuffer(count: 512)
      let request = self.request(.write, 83..<84, buffer)
      #expect(await image.serve(request, worker: 0, slot: 0) == .done)
      withExtendedLifetime(buffer) {}
      try await image.flush()
    }
    let events = bench.recording.events
    let table = try #require(events.firstIndex { $0.file == 0 && $0.offset == l2 })
    let sync = try #require(events[..<table].lastIndex { $0.file == 1 && $0.kind == .sync })
    #expect(events[..<sync].contains { $0.file == 1 && $0.kind == .write })
    #expect(!events[sync...].contains { $0.file == 1 && $0.kind == .write })
    #expect(events[table...].contains { $0.file == 0 && $0.kind == .sync })
  }
}
