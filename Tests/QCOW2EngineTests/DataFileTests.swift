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

  @Test(
    "Over a backing file, zeros in a raw data file hide what the backing file has",
    arguments: [BlockOperation.discard, .writeZeroes], [false, true])
  func zerosHideTheBackingFile(operation: BlockOperation, keeps: Bool) throws {
    var builder = ImageBuilder()
    builder.clusterBits = 12
    builder.size = 256 << 10
    builder.features.dataFile = .raw
    builder.features.backing = .equal
    for cluster in 0..<8 { builder.mappings[cluster] = .data }
    let bench = Bench(builder, schedule: nil, isImmediate: true)
    try bench.host.run {
      let image = try await bench.open()
      // Unallocated, allocated, and both; whole clusters and parts of them.
      for sectors in [16..<32, 80..<96, 60..<76, 130..<150, 200..<201] {
        var request = self.request(operation, sectors)
        request.keepsAllocation = keeps
        let zeroed =
          operation == .discard
          ? (sectors.lowerBound + 7) / 8 * 8..<sectors.upperBound / 8 * 8 : sectors
        #expect(await image.serve(request, worker: 0, slot: 0) == .done)
        if zeroed.isEmpty { continue }
        let buffer = IOBuffer(count: zeroed.count * 512)
        let read = await image.serve(self.request(.read, zeroed, buffer), worker: 0, slot: 0)
        #expect(read == .done)
        let bytes = UnsafeRawBufferPointer(start: buffer.base, count: buffer.count)
        #expect(bytes.allSatisfy { $0 == 0 }, "\(sectors)")
        withExtendedLifetime(buffer) {}
      }
      try await image.close()
    }
    let report = bench.verifier().check()
    #expect(report.errors.isEmpty && report.leaks == 0, "\(report)")
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

  struct Misuse: Sendable, CustomTestStringConvertible {
    var operation: BlockOperation
    var dataFile: ImageFeatures.DataFile
    var isExtended: Bool
    var plans: Bool
    var testDescription: String {
      "\(operation), \(dataFile), \(isExtended ? "extended" : "standard"), plan \(plans)"
    }
  }

  static let misuses = [BlockOperation.read, .write, .discard, .writeZeroes].flatMap { operation in
    [ImageFeatures.DataFile.plain, .raw].flatMap { dataFile in
      [false, true].flatMap { isExtended in
        [false, true].map {
          Misuse(operation: operation, dataFile: dataFile, isExtended: isExtended, plans: $0)
        }
      }
    }
  }

  @Test(
    "An entry that has its data elsewhere than at the guest's offset is corrupt, whatever is asked",
    arguments: misuses)
  func dataElsewhereIsCorrupt(misuse: Misuse) throws {
    var builder = ImageBuilder()
    builder.clusterBits = 14
    builder.size = 1 << 20
    builder.features.dataFile = misuse.dataFile
    builder.features.isExtended = misuse.isExtended
    for cluster in 0..<8 {
      builder.mappings[cluster] =
        misuse.isExtended ? .subclusters(allocated: .max, zero: 0, hasHost: true) : .data
    }
    let bench = Bench(builder, schedule: nil, isImmediate: true)
    let data = try #require(bench.dataMemory).bytes
    // Two clusters have each other's data.
    let table = Int(bench.bytes.be64(Int(bench.bytes.be64(40))) & 0x00ff_ffff_ffff_fe00)
    let size = misuse.isExtended ? 16 : 8
    let (one, other) = (table + 2 * size, table + 3 * size)
    let entries = (bench.bytes.be64(one), bench.bytes.be64(other))
    bench.bytes.put64(entries.1, one)
    bench.bytes.put64(entries.0, other)
    let before = data.copy()
    try bench.host.run {
      let image = try await bench.open()
      let driver = MiniWorker(target: image, files: [bench.files[0], bench.files[1]], worker: 0)
      let buffer = IOBuffer(count: 16 << 10)
      // What is in order can be read, and has the slice in the cache.
      let fine = self.request(.read, 32..<64, buffer)
      #expect(await driver.perform(fine, slot: 0, plans: false) == nil)
      let hasData = misuse.operation == .read || misuse.operation == .write
      let request = self.request(misuse.operation, 64..<96, hasData ? buffer : nil)
      let errno = await driver.perform(request, slot: 0, plans: misuse.plans)
      // A raw data file is zeroed in itself, where the guest sees it; its entries stay.
      let isZeroed = !hasData && misuse.dataFile == .raw && errno == nil
      #expect(errno == .io || isZeroed)
      withExtendedLifetime(buffer) {}
      _ = try? await image.close()
      if isZeroed { return }
      #expect(bench.bytes.be64(72) & 2 != 0, "not marked corrupt")
    }
    let changed = (0..<(before.length / 8)).filter { data.be64($0 * 8) != before.be64($0 * 8) }
    let own = (2 << 14)..<(3 << 14)
    #expect(changed.allSatisfy { misuse.dataFile == .raw && own.contains($0 * 8) }, "data changed")
  }

  @Test(
    "A flush makes the data file durable before any table that points into it",
    arguments: [false, true])
  func aFlushCoversTheDataFile(isLazy: Bool) throws {
    var builder = ImageBuilder()
    builder.clusterBits = 12
    builder.size = 256 << 10
    builder.features.dataFile = .plain
    builder.compatible = isLazy ? 1 : 0
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

  @Test(
    "Nothing is punched in a data file whose holes would not read as zeros",
    arguments: [(true, false), (false, true), (false, false)])
  func holesThatAreNotZeros(isDevice: Bool, isEnciphered: Bool) throws {
    var builder = ImageBuilder()
    builder.clusterBits = 12
    builder.size = 256 << 10
    builder.features.dataFile = .plain
    builder.features.cipher = isEnciphered ? .host : nil
    for cluster in 0..<8 { builder.mappings[cluster] = .data }
    let bench = Bench(
      builder, schedule: nil, traits: HostFileTraits(isBlockDevice: isDevice), room: 1 << 20,
      isImmediate: true)
    try bench.host.run {
      let image = try await bench.open()
      let discard = self.request(.discard, 16..<24)
      #expect(await image.serve(discard, worker: 0, slot: 0) == .done)
      try await image.close()
    }
    let punches = bench.recording.events.filter { $0.kind == .punch && $0.file == 1 }
    #expect(punches.isEmpty == (isDevice || isEnciphered), "\(punches.map(\.offset))")
  }
}
