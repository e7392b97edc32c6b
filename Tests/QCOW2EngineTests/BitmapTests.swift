import BlockCore
import QCOW2Engine
import TestSupport
import Testing

/// What the tracker does to bitmaps in single, chosen situations.
@Suite struct BitmapTests {
  /// Opens an image, runs `body`, and closes it if `body` returns true.
  private func with(
    _ bench: Bench, _ body: @escaping @Sendable (Image, MiniWorker) async throws -> Bool
  ) throws {
    try bench.host.run {
      let image = try await bench.open()
      let worker = MiniWorker(target: image, file: bench.file, worker: 0)
      if try await body(image, worker) { try await image.close() }
    }
  }

  private func request(
    _ operation: BlockOperation, _ sectors: Range<Int>, _ buffer: IOBuffer? = nil
  ) -> BlockRequest {
    BlockRequest(
      operation, offset: GuestOffset(UInt64(sectors.lowerBound) * 512),
      length: UInt64(sectors.count) * 512, data: buffer?.data.slice(0, sectors.count * 512) ?? .none
    )
  }

  @Test(
    "After a clean close bitmaps have the bits asked for and no others", arguments: BitmapShape.all)
  func aCleanCloseIsExact(shape: BitmapShape) throws {
    let bench = shape.bench(schedule: nil)
    let end = shape.size / 512
    let asked: [(BlockOperation, Range<Int>)] = [
      (.write, 3..<4), (.write, 17..<40), (.discard, 100..<228), (.writeZeroes, 300..<301),
      (.write, (end / 2)..<(end / 2 + 9)), (.write, (end - 1)..<end), (.discard, (end - 30)..<end),
    ]
    try with(bench) { image, worker in
      let buffer = IOBuffer(count: 1 << 20)
      buffer.base.initializeMemory(as: UInt8.self, repeating: 7, count: buffer.count)
      for (operation, sectors) in asked {
        let data = operation == .write ? buffer : nil
        #expect(await worker.perform(request(operation, sectors, data), slot: 0) == nil)
      }
      #expect(await worker.perform(request(.read, 5000..<5100, buffer), slot: 0) == nil)
      #expect(image.bitmaps.tracked == shape.names)
      return true
    }
    #expect(bench.problems().filter { !$0.hasPrefix("on disk") } == [])
    let check = BitmapCheck(shape.names, bench)
    #expect(check.inexact(in: bench.bytes, asked: asked.map(\.1)) == nil)
    #expect(check.missing(in: bench.bytes, touched: []) == nil)
  }

  @Test("The bit is durable before the data write starts")
  func theBitIsDurableBeforeTheData() throws {
    let shape = BitmapShape.small
    let bench = shape.bench(schedule: nil)
    try with(bench) { _, worker in
      let buffer = IOBuffer(count: 512)
      buffer.base.initializeMemory(as: UInt8.self, repeating: 0xab, count: 512)
      for sector in [3, 4100, 8200] {
        #expect(
          await worker.perform(request(.write, sector..<(sector + 1), buffer), slot: 0) == nil)
      }
      return false
    }
    let data = bench.recording.events.filter { $0.kind == .write && $0.data.first == 0xab }
    #expect(data.count == 3)
    for (event, sector) in zip(data, [3, 4100, 8200]) {
      // All that had ended when the last sync began which had ended when the data write began.
      let barrier =
        bench.recording.events
        .last { $0.kind == .sync && $0.end < event.start }?.start ?? 0
      let before = bench.original.copy()
      for change in bench.recording.events where change.end < barrier && change.kind == .write {
        before.put(change.data, Int(change.offset))
      }
      let verifier = ImageVerifier(before)
      for bitmap in verifier.bitmaps ?? [] where shape.names.contains(bitmap.name) {
        #expect(verifier.isSet(bitmap, sector: sector), "\(bitmap.name), sector \(sector)")
      }
    }
  }

  @Test("Requests that wait together share a sync, and streams need few")
  func syncsAreShared() throws {
    var shape = BitmapShape.all[3]
    shape.intentBytes = 64 << 10
    shape.isRestless = false
    let bench = shape.bench(schedule: nil)
    bench.options.slotsPerWorker = 64
    try with(bench) { image, worker in
      let buffer = IOBuffer(count: 4096)
      // The cluster that the first bitmap needs comes first, with syncs of its own.
      #expect(await worker.perform(request(.write, 0..<8, buffer), slot: 0) == nil)
      let before = syncs(bench)
      await withTaskGroup(of: Void.self) { group in
        for slot in 0..<64 {
          let first = 1000 + slot * 300
          group.addTask {
            let request = request(.write, first..<(first + 8), buffer)
            #expect(await worker.perform(request, slot: slot) == nil)
          }
        }
      }
      let together = syncs(bench) - before
      #expect(together <= 2, "\(together) syncs for 64 requests at once")
      // 16 MiB in order, in 256 regions.
      for first in stride(from: 0, to: 32768, by: 8) {
        let request = request(.write, first..<(first + 8), buffer)
        #expect(await worker.perform(request, slot: 0) == nil)
      }
      let stream = syncs(bench) - before - together
      #expect(stream <= 32, "\(stream) syncs for a stream over 256 regions")
      return true
    }
  }

  private func syncs(_ bench: Bench) -> Int {
    bench.recording.events.filter { $0.kind == .sync }.count
  }

  @Test("A second write nearby stays on the hit path")
  func nearbyWritesStayOnTheHitPath() throws {
    let bench = BitmapShape.small.bench(schedule: nil)
    try with(bench) { image, worker in
      let buffer = IOBuffer(count: 512)
      #expect(await worker.perform(request(.write, 3..<4, buffer), slot: 0) == nil)
      let plan = UnsafeMutableBufferPointer<HostTransfer>.allocate(capacity: 8)
      defer { plan.deallocate() }
      func isPlanned(_ sectors: Range<Int>) -> Bool {
        let request = request(.write, sectors, buffer)
        guard case .transfers = image.plan(request, worker: 0, slot: 0, into: plan) else {
          return false
        }
        _ = image.finish(worker: 0, slot: 0, failed: false)
        return true
      }
      #expect(isPlanned(3..<4))
      #expect(isPlanned(5..<6))
      // Mapped and resident, but in another region.
      #expect(!isPlanned(9..<10))
      return true
    }
    let check = BitmapCheck(BitmapShape.small.names, bench)
    #expect(check.inexact(in: bench.bytes, asked: [3..<4, 5..<6, 9..<10]) == nil)
  }

  @Test("Without a free cluster a bitmap says too much, and goes back when there is one")
  func withoutSpaceABitmapSaysTooMuch() throws {
    let shape = BitmapShape.small
    let bench = Bench(
      shape.builder, schedule: nil, traits: HostFileTraits(isBlockDevice: true))
    bench.options.bitmapIntentBytes = 4096
    bench.options.bitmapQuietMilliseconds = 1_000_000
    try with(bench) { image, worker in
      let buffer = IOBuffer(count: 512)
      buffer.base.initializeMemory(as: UInt8.self, repeating: 0xcd, count: 512)
      // Mapped: needs no cluster for the data. The bitmap would need one.
      #expect(await worker.perform(request(.write, 3..<4, buffer), slot: 0) == nil)
      #expect(
        await worker.perform(request(.write, 1..<2, buffer), slot: 0) == .noSpace,
        "there is space after all")
      let verifier = ImageVerifier(bench.bytes)
      let bitmap = try #require(verifier.bitmaps?.first)
      #expect(verifier.isSet(bitmap, sector: 3) && verifier.isSet(bitmap, sector: 4000))
      // Three clusters come free, one of which the bitmap takes at the close.
      #expect(await worker.perform(request(.discard, 8..<16), slot: 0) == nil)
      for _ in 0..<3 {
        try await image.flush()
        await image.maintain()
      }
      return true
    }
    let check = BitmapCheck(shape.names, bench)
    #expect(check.inexact(in: bench.bytes, asked: [3..<4, 1..<2, 8..<16]) == nil)
    #expect(ImageVerifier(bench.bytes).check().errors == [])
  }

  @Test("A request for the whole disk takes no cluster")
  func theWholeDiskTakesNoCluster() throws {
    let shape = BitmapShape.small
    let bench = shape.bench(schedule: nil)
    let length = bench.bytes.length
    try with(bench) { image, worker in
      let whole = request(.discard, 0..<(shape.size / 512))
      #expect(await worker.perform(whole, slot: 0) == nil)
      return true
    }
    let check = BitmapCheck(shape.names, bench)
    #expect(check.inexact(in: bench.bytes, asked: [0..<(shape.size / 512)]) == nil)
    #expect(bench.bytes.length <= length + (64 << 9))
    #expect(bench.problems().filter { !$0.hasPrefix("on disk") } == [])
  }

  @Test("Bits that a crash left set beyond the exact ones stay set")
  func bitsFoundStay() throws {
    let shape = BitmapShape.small
    let bench = shape.bench(schedule: nil)
    try with(bench) { _, worker in
      let buffer = IOBuffer(count: 512)
      #expect(await worker.perform(request(.write, 3..<4, buffer), slot: 0) == nil)
      return false
    }
    let crashed = bench.bytes.copy()
    try with(bench) { _, worker in
      let buffer = IOBuffer(count: 512)
      #expect(await worker.perform(request(.write, 4..<5, buffer), slot: 0) == nil)
      return true
    }
    let before = ImageVerifier(crashed)
    let after = ImageVerifier(bench.bytes)
    for (old, new) in zip(before.bitmaps ?? [], after.bitmaps ?? []) {
      for sector in 0..<(shape.size / 512) where before.isSet(old, sector: sector) {
        #expect(after.isSet(new, sector: sector))
      }
    }
  }
}
