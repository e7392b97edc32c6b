import BlockCore
import TestSupport
import TestTools
import Testing

@testable import QCOW2Engine

/// Random reads of a disk of 1 TiB, whose slices are four times what the cache holds.
@Suite struct WorkingSetTests {
  private let file = SyntheticImage(size: 1 << 40)
  private let buffer = IOBuffer(count: 512)

  private func open() async throws -> Image {
    file.fillsData = false
    var options = ImageOptions()
    options.readOnly = true
    return try await Image.open(file, options: options)
  }

  private func read(_ image: Image, slice: Int, _ random: inout SeededGenerator) async {
    let sector = UInt64(random.below(Int(image.slices.bytesPerSlice / 512)))
    let request = BlockRequest(
      .read, offset: GuestOffset(UInt64(slice) * image.slices.bytesPerSlice + sector * 512),
      length: 512, data: buffer.data)
    let plan = UnsafeMutableBufferPointer<HostTransfer>.allocate(capacity: 4)
    defer { plan.deallocate() }
    if case .transfers = image.plan(request, worker: 0, slot: 0, into: plan) {
      _ = image.finish(worker: 0, slot: 0, failed: false)
      return
    }
    #expect(await image.serve(request, worker: 0, slot: 0) == .done)
  }

  /// `count` of the disk's slices, in random order.
  private func someSlices(_ count: Int, _ random: inout SeededGenerator) -> [Int] {
    var all = Array(0..<32768)
    for index in 0..<count { all.swapAt(index, index + random.below(all.count - index)) }
    return Array(all[..<count])
  }

  @Test("A working set below the budget is read once")
  func belowTheBudget() async throws {
    var random = SeededGenerator(seed: testSeed("working set"))
    let image = try await open()
    let set = someSlices(6000, &random)
    for slice in set { await read(image, slice: slice, &random) }
    file.resetCounts()
    for _ in 0..<20000 { await read(image, slice: set[random.below(set.count)], &random) }
    #expect(file.reads(.l2) < 200, "\(file.reads(.l2)) of 20000 reads missed")
  }

  @Test("A working set twice the budget is found half of the time")
  func aboveTheBudget() async throws {
    var random = SeededGenerator(seed: testSeed("working set"))
    let image = try await open()
    let set = someSlices(16384, &random)
    for slice in set { await read(image, slice: slice, &random) }
    file.resetCounts()
    for _ in 0..<20000 { await read(image, slice: set[random.below(set.count)], &random) }
    let hits = 20000 - file.reads(.l2)
    #expect(hits > 9000, "\(hits) of 20000 reads hit")
  }

  @Test("What is used all the time survives a scan of the disk", arguments: [true, false])
  func aHotSetSurvivesAScan(isSequential: Bool) async throws {
    var random = SeededGenerator(seed: testSeed("scan"))
    let image = try await open()
    let hot = someSlices(2000, &random)
    for _ in 0..<2 { for slice in hot { await read(image, slice: slice, &random) } }
    var scan = Array(0..<32768)
    if !isSequential { scan.shuffle(using: &random) }
    var misses = 0
    var reads = 0
    for slice in scan {
      await read(image, slice: slice, &random)
      // A stream comes back to a slice many times before it leaves it.
      if isSequential { await read(image, slice: slice, &random) }
      for _ in 0..<2 {
        let before = image.l2.counts.loads
        await read(image, slice: hot[random.below(hot.count)], &random)
        misses += image.l2.counts.loads - before
        reads += 1
      }
    }
    #expect(misses * 20 < reads, "\(misses) of \(reads) reads of the hot set missed")
  }
}
