import BlockCore
import QCOW2Engine
import TestSupport
import Testing

/// Growth of the refcount structures: small clusters and wide refcounts make it frequent.
@Suite struct GrowthTests {
  /// Writes the whole disk in order; checks the image at intervals and at each new table.
  private func writeSequentially(
    _ shape: ImageShape, size: Int, checkEvery: Int
  ) throws -> (tables: Int, errors: [String]) {
    var builder = shape.builder
    builder.size = size
    let bench = Bench(builder, schedule: nil, isImmediate: true)
    let result = Box((tables: 0, errors: [String]()))
    try bench.host.run {
      let image = try await bench.open()
      let driver = MiniWorker(target: image, file: bench.file, worker: 0)
      var table = bench.bytes.be64(48)
      for step in 0..<(size / (16 * 512)) {
        if let errno = await bench.write((step * 16)..<(step * 16 + 16), by: driver) {
          result.value.errors.append("write \(step): errno \(errno.code)")
          return
        }
        let hasGrown = bench.bytes.be64(48) != table
        if hasGrown || step % checkEvery == 0 {
          if hasGrown { result.value.tables += 1 }
          table = bench.bytes.be64(48)
          try await image.flush()
          result.value.errors += ImageVerifier(bench.bytes).check().errors
          if !result.value.errors.isEmpty { return }
        }
        if step % 16 == 0 { await image.maintain() }
      }
      try await image.close()
      result.value.errors += bench.problems()
    }
    return result.value
  }

  @Test("The refcount table grows again and again without harm", arguments: [5, 6])
  func theRefcountTableGrowsAgainAndAgain(order: Int) throws {
    let shape = ImageShape(clusterBits: 9, refcountOrder: order)
    let found = try writeSequentially(shape, size: 12 << 20, checkEvery: 100)
    #expect(found.errors.isEmpty, "\(found.errors.prefix(3))")
    #expect(found.tables >= 2)
  }

  @Test("New refcount blocks of every width count what they must", arguments: 0...6)
  func newRefcountBlocksOfEveryWidth(order: Int) throws {
    let shape = ImageShape(clusterBits: 9, refcountOrder: order)
    let found = try writeSequentially(shape, size: 3 << 20, checkEvery: 40)
    #expect(found.errors.isEmpty, "\(found.errors.prefix(3))")
  }

  @Test("A round that falls into the making of a refcount block does not point at it yet")
  func aRoundInTheMakingOfABlock() throws {
    var builder = ImageShape(clusterBits: 9).builder
    builder.size = 256 << 10
    let bench = Bench(builder, schedule: nil)
    let gated = GatedFile(bench.recording)
    // A block of 512 bytes counts 256 clusters; the second one begins here, and counts itself.
    let block = 256 * 512
    try bench.host.run {
      let image = try await bench.open([gated], options: bench.options)
      gated.gate = UInt64(block)..<UInt64(block + 512)
      await withTaskGroup(of: Void.self) { group in
        group.addTask {
          let driver = MiniWorker(target: image, file: gated, worker: 0)
          #expect(await bench.write(0..<300, by: driver) == nil)
        }
        while gated.held.isEmpty { await bench.host.complete("tick") }
        do { try await image.flush() } catch { Issue.record("flush: \(error)") }
        let errors = ImageVerifier(bench.bytes.copy()).check().errors
        #expect(errors.isEmpty, "\(errors.prefix(3))")
        gated.gate = nil
      }
      try await image.close()
    }
    #expect(bench.bytes.be64(Int(bench.bytes.be64(48)) + 8) == UInt64(block))
    #expect(bench.problems().isEmpty)
  }

  @Test("A refcount block in a place that has old bytes counts none of them")
  func aBlockWhereThereAreOldBytes() throws {
    var builder = ImageShape(clusterBits: 9).builder
    builder.size = 256 << 10
    let bench = Bench(builder, schedule: nil, isImmediate: true)
    // The second block's place lies inside the file.
    let end = (bench.bytes.length + 511) / 512 * 512
    bench.bytes.fill(0xee, count: 600 * 512 - end, at: end)
    try bench.host.run {
      let image = try await bench.open()
      let driver = MiniWorker(target: image, file: bench.file, worker: 0)
      #expect(await bench.write(0..<400, by: driver) == nil)
      try await image.close()
    }
    #expect(bench.problems() == [])
  }

  @Test("The power may fail at any moment while the refcount table grows")
  func aPowerCutDuringGrowth() throws {
    let bench = Bench(ImageShape.nearGrowth.builder, schedule: nil, isImmediate: true)
    try bench.host.run {
      let image = try await bench.open()
      let driver = MiniWorker(target: image, file: bench.file, worker: 0)
      // No flush: what the old table's blocks count is in memory when the table grows.
      for sector in stride(from: 3880, to: 4080, by: 40) {
        #expect(await bench.write(sector..<(sector + 40), by: driver) == nil)
      }
    }
    #expect(bench.bytes.be64(48) != bench.original.be64(48), "the table did not grow")
    _ = try CrashCheck(bench, seed: 1).run(perCut: 4)
  }

  @Test("Growth never cuts off data that an entry maps beyond the end of a file that was cut")
  func growthNeverCutsOffMappedData() throws {
    var builder = ImageShape(clusterBits: 9, refcountOrder: 6).builder
    builder.size = 1 << 20
    builder.mappings = [0: .data]
    let bench = Bench(builder, schedule: nil, isImmediate: true)
    let beyond = 512 << 10
    let table = Int(bench.bytes.be64(Int(bench.bytes.be64(40))) & 0xff_ffff_ffff_fe00)
    bench.bytes.put64(UInt64(beyond) | 1 << 63, table)
    let failures = Box(0)
    try bench.host.run {
      let image = try await bench.open()
      let driver = MiniWorker(target: image, file: bench.file, worker: 0)
      let buffer = IOBuffer(count: 512)
      buffer.base.initializeMemory(as: UInt8.self, repeating: 0x5a, count: 512)
      // Cluster 0 lies beyond the end; the others need new clusters and several refcount blocks.
      for cluster in 0..<200 {
        let request = BlockRequest(
          .write, offset: GuestOffset(UInt64(cluster * 512)), length: 512, data: buffer.data)
        if await driver.perform(request, slot: 0) != nil { failures.value += 1 }
      }
      try await image.flush()
    }
    #expect(failures.value == 0)
    #expect(bench.memory.violations.isEmpty, "\(bench.memory.violations)")
    #expect(bench.bytes.be64(beyond) == 0x5a5a_5a5a_5a5a_5a5a)
  }

  @Test("Unknown header bytes and extensions survive growth")
  func unknownHeaderBytesSurviveGrowth() throws {
    var builder = ImageShape.nearGrowth.builder
    let name = Array("made by a test, unknown to the engine".utf8)
    builder.extensions =
      [0x12, 0x34, 0x56, 0x78, 0, 0, 0, UInt8(name.count)] + name
      + Array(repeating: 0, count: (8 - name.count % 8) % 8) + [0, 0, 0, 0, 0, 0, 0, 0, 0xab]
    let bench = Bench(builder, schedule: nil, isImmediate: true)
    try bench.host.run {
      let image = try await bench.open()
      let driver = MiniWorker(target: image, file: bench.file, worker: 0)
      let buffer = IOBuffer(count: 200 * 512)
      let request = BlockRequest(
        .write, offset: GuestOffset(3880 * 512), length: UInt64(buffer.count), data: buffer.data)
      #expect(await driver.perform(request, slot: 0) == nil)
      try await image.close()
    }
    #expect(bench.bytes.be64(48) != bench.original.be64(48))
    for offset in 0..<512 where !(48..<60).contains(offset) {
      let before = bench.original.base.load(fromByteOffset: offset, as: UInt8.self)
      let after = bench.bytes.base.load(fromByteOffset: offset, as: UInt8.self)
      #expect(before == after, "header byte \(offset)")
    }
    #expect(ImageVerifier(bench.bytes).check().errors.isEmpty)
  }
}
