import BlockCore
import QCOW2Engine
import TestSupport
import Testing

/// Broken images: nothing may be overwritten, and the image is marked [ALLOC-1, CHK-7].
@Suite struct CorruptionTests {
  private func bench(_ clusterBits: Int = 9) -> Bench {
    var builder = ImageBuilder()
    builder.clusterBits = clusterBits
    builder.size = 512 << 10
    for cluster in 0..<10 { builder.mappings[cluster] = .data }
    return Bench(builder, schedule: nil, isImmediate: true)
  }

  /// The format knows no compressed cluster that is COPIED, and one that is must not outlive its data.
  @Test func `zeroes replace a compressed cluster that is marked COPIED`() throws {
    var builder = ImageBuilder()
    builder.clusterBits = 14
    builder.size = 512 << 10
    builder.features.isExtended = true
    for cluster in 0..<4 { builder.mappings[cluster] = .compressed }
    let bench = Bench(builder, schedule: nil, isImmediate: true)
    let l2 = bench.bytes.be64(Int(bench.bytes.be64(40))) & 0x00ff_ffff_ffff_fe00
    let entry = Int(l2) + 16
    bench.bytes.put64(bench.bytes.be64(entry) | 1 << 63, entry)
    try bench.host.run {
      let image = try await bench.open()
      let driver = MiniWorker(target: image, file: bench.file, worker: 0)
      var request = BlockRequest(.writeZeroes, offset: GuestOffset(1 << 14), length: 1 << 14)
      request.keepsAllocation = true
      #expect(await driver.perform(request, slot: 0) == nil)
      let buffer = IOBuffer(count: 1 << 14)
      buffer.base.initializeMemory(as: UInt8.self, repeating: 0x99, count: buffer.count)
      let read = BlockRequest(
        .read, offset: GuestOffset(1 << 14), length: 1 << 14, data: buffer.data)
      #expect(await driver.perform(read, slot: 0) == nil)
      let bytes = UnsafeRawBufferPointer(start: buffer.base, count: buffer.count)
      #expect(bytes.allSatisfy { $0 == 0 })
      try await image.close()
    }
    #expect(ImageVerifier(bench.bytes).check().errors.isEmpty)
  }

  /// Opens the image, breaks it by `damage`, and carries out `operation` on the guest clusters.
  ///
  /// Everything that existed must stay as it is, save the mark in the header. The damage comes
  /// after opening, which refuses most of it: what matters here is the last line of defence. With
  /// `warms`, the cluster behind them is read first, so that the hit path finds their entries.
  private func expectRefusal(
    _ bench: Bench, _ operation: BlockOperation, clusters: Range<Int>, plans: Bool = true,
    warms: Bool = false, keepsTables: Bool = true, damage: @escaping () -> Void
  ) throws {
    let before = Box(bench.bytes)
    let damage = Box(damage)
    let size = 1 << bench.builder.clusterBits
    try bench.host.run {
      let image = try await bench.open()
      damage.value()
      before.value = bench.bytes.copy()
      let driver = MiniWorker(target: image, file: bench.file, worker: 0)
      let buffer = IOBuffer(count: clusters.count * size)
      if warms {
        let neighbour = BlockRequest(
          .read, offset: GuestOffset(UInt64(clusters.upperBound * size)), length: UInt64(size),
          data: buffer.data.slice(0, size))
        #expect(await driver.perform(neighbour, slot: 0, plans: false) == nil)
      }
      buffer.base.initializeMemory(as: UInt8.self, repeating: 0x99, count: buffer.count)
      let request = BlockRequest(
        operation, offset: GuestOffset(UInt64(clusters.lowerBound * size)),
        length: UInt64(buffer.count), data: operation == .write ? buffer.data : .none)
      if let errno = await driver.perform(request, slot: 0, plans: plans) {
        #expect(errno == .io)
      } else {
        // A discard may only be found out when its clusters are let go.
        _ = try? await image.flush()
        await image.maintain()
      }
      // Writing has stopped.
      #expect(await driver.perform(request, slot: 0) == .io)
      _ = try? await image.close()
    }
    #expect(bench.bytes.be64(72) & 2 != 0, "not marked corrupt")
    let original = before.value
    bench.bytes.put64(original.be64(72), 72)
    for cluster in metadata(original, keepsTables) {
      for offset in stride(
        from: cluster * size, to: min((cluster + 1) * size, original.length), by: 8)
      where bench.bytes.be64(offset) != original.be64(offset) {
        Issue.record("metadata changed at \(offset)")
        return
      }
    }
  }

  /// The header, L1 table and refcount table of a small image.
  private func metadata(_ bytes: ImageBytes, _ withTables: Bool) -> [Int] {
    let bits = Int(bytes.be32(20))
    return [0] + (withTables ? [Int(bytes.be64(40)) >> bits, Int(bytes.be64(48)) >> bits] : [])
  }

  private func setRefcount(_ bench: Bench, _ cluster: Int, _ value: UInt16) {
    let block = Int(bench.bytes.be64(Int(bench.bytes.be64(48))))
    bench.bytes.put16(value, block + cluster * 2)
  }

  private func firstTable(_ bench: Bench) -> Int {
    Int(bench.bytes.be64(Int(bench.bytes.be64(40))) & 0x00ff_ffff_ffff_fe00)
  }

  enum Structure: String, CaseIterable, Sendable {
    case header, l1, l2, refcountTable, refcountBlock
  }

  private func offset(_ structure: Structure, _ bench: Bench) -> Int {
    switch structure {
    case .header: 0
    case .l1: Int(bench.bytes.be64(40))
    case .l2: firstTable(bench)
    case .refcountTable: Int(bench.bytes.be64(48))
    case .refcountBlock: Int(bench.bytes.be64(Int(bench.bytes.be64(48))))
    }
  }

  @Test(
    "An entry that leads far beyond the file, and has no refcount, can be replaced and discarded",
    arguments: [BlockOperation.write, .discard, .writeZeroes], [false, true])
  func anEntryBeyondTheFileCanBeReplaced(operation: BlockOperation, isDevice: Bool) throws {
    var builder = ImageBuilder()
    builder.clusterBits = 12
    builder.size = 512 << 10
    for cluster in 0..<10 { builder.mappings[cluster] = .data }
    let bench = Bench(
      builder, schedule: nil, traits: HostFileTraits(isBlockDevice: isDevice),
      room: isDevice ? 1 << 20 : 0, isImmediate: true)
    // As a repair leaves them: without COPIED, which says that there is one reference.
    for (index, place) in [(5, 1 << 30), (6, 1 << 40), (7, 1 << 30 + 4096)] {
      let old = Int(bench.bytes.be64(firstTable(bench) + index * 8) & 0x00ff_ffff_ffff_fe00)
      setRefcount(bench, old >> 12, 0)
      bench.bytes.put64(UInt64(place), firstTable(bench) + index * 8)
    }
    try bench.host.run {
      let image = try await bench.open()
      let driver = MiniWorker(target: image, file: bench.file, worker: 0)
      let buffer = IOBuffer(count: 4 * 4096)
      buffer.base.initializeMemory(as: UInt8.self, repeating: 0x55, count: buffer.count)
      let request = BlockRequest(
        operation, offset: GuestOffset(4 * 4096), length: 4 * 4096,
        data: operation == .write ? buffer.data : .none)
      #expect(await driver.perform(request, slot: 0) == nil)
      try await image.flush()
      await image.maintain()
      let other = BlockRequest(
        .write, offset: GuestOffset(20 * 4096), length: 4 * 4096, data: buffer.data)
      #expect(await driver.perform(other, slot: 0) == nil)
      try await image.close()
    }
    #expect(bench.bytes.be64(72) & 2 == 0, "marked corrupt")
    let report = ImageVerifier(bench.bytes).check()
    #expect(report.errors.isEmpty && report.leaks == 0, "\(report)")
  }

  @Test("Metadata that looks free is not handed out", arguments: Structure.allCases, [9, 12])
  func metadataThatLooksFreeIsNotHandedOut(structure: Structure, bits: Int) throws {
    let bench = bench(bits)
    try expectRefusal(bench, .write, clusters: 20..<24) {
      setRefcount(bench, offset(structure, bench) >> bits, 0)
    }
  }

  @Test(
    "A data pointer into metadata is never written through",
    arguments: [Structure.l1, .l2, .refcountTable, .refcountBlock], [true, false])
  func aDataPointerIntoMetadataIsNotWrittenThrough(structure: Structure, plans: Bool) throws {
    let bench = bench()
    try expectRefusal(bench, .write, clusters: 5..<6, plans: plans) {
      bench.bytes.put64(UInt64(offset(structure, bench)) | 1 << 63, firstTable(bench) + 5 * 8)
    }
  }

  /// One cluster is mapped by ``HitMap``, two are by the general planner.
  @Test(
    "Nor is a data pointer into metadata that the hit path finds in the cache",
    arguments: [Structure.l1, .l2, .refcountTable, .refcountBlock], [1, 2])
  func aCachedDataPointerIntoMetadataIsNotWrittenThrough(structure: Structure, count: Int) throws {
    let bench = bench()
    try expectRefusal(bench, .write, clusters: 5..<(5 + count), warms: true) {
      bench.bytes.put64(UInt64(offset(structure, bench)) | 1 << 63, firstTable(bench) + 5 * 8)
    }
  }

  @Test(
    "A discard or write through a data pointer into metadata does not free or punch the metadata",
    arguments: [Structure.l1, .l2, .refcountTable, .refcountBlock],
    [BlockOperation.discard, .writeZeroes, .write])
  func aDataPointerIntoMetadataIsNotFreed(structure: Structure, operation: BlockOperation) throws {
    let bench = bench()
    try expectRefusal(bench, operation, clusters: 5..<6) {
      // Not COPIED: a write goes elsewhere and lets the old cluster go.
      bench.bytes.put64(UInt64(offset(structure, bench)), firstTable(bench) + 5 * 8)
    }
  }

  @Test(
    "An unaligned pointer is found, whatever is asked",
    arguments: [BlockOperation.write, .discard, .writeZeroes])
  func anUnalignedPointerIsFound(operation: BlockOperation) throws {
    let bench = bench(12)
    try expectRefusal(bench, operation, clusters: 5..<6) {
      bench.bytes.put64(bench.bytes.be64(firstTable(bench) + 40) | 512, firstTable(bench) + 40)
    }
  }

  @Test("Growth of the refcount table does not overwrite what lies where it would go")
  func growthDoesNotOverwrite() throws {
    let bench = Bench(ImageShape.nearGrowth.builder, schedule: nil, isImmediate: true)
    // An L2 table moved to the first cluster that the refcount table cannot count.
    let target = 4096 * 512
    let entry = Int(bench.bytes.be64(40)) + 8
    let table = Int(bench.bytes.be64(entry) & 0x00ff_ffff_ffff_fe00)
    var copy = [UInt8](repeating: 0, count: 512)
    copy.withUnsafeMutableBytes { bytes in
      if let base = bytes.baseAddress { bench.bytes.read(into: base, count: 512, at: table) }
    }
    bench.bytes.put(copy, target)
    bench.bytes.put64(UInt64(target) | 1 << 63, entry)
    // The clusters that there is room for get new L2 tables and refcounts.
    try expectRefusal(bench, .write, clusters: 3880..<4080, keepsTables: false) {}
    for (index, byte) in copy.enumerated()
    where bench.bytes.base.load(fromByteOffset: target + index, as: UInt8.self) != byte {
      Issue.record("the table at the end was overwritten at \(index)")
      return
    }
  }
}
