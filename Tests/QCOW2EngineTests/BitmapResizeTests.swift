import BlockCore
import QCOW2Engine
import TestSupport
import TestTools
import Testing

/// Persistent bitmaps of disks that get other sizes.
@Suite struct BitmapResizeTests {
  private static func sizes(_ shape: BitmapShape) -> (small: UInt64, large: UInt64) {
    let small = UInt64(shape.size) & ~511
    return (small, small * 5)
  }

  @Test(
    "Every power cut leaves one size or the other, with bitmaps that fit it",
    arguments: share(of: BitmapShape.all))
  func everyPowerCutLeavesBitmapsThatFit(shape: BitmapShape) throws {
    let seed = testSeed("bitmap resize power cut")
    let sizes = Self.sizes(shape)
    let bench = shape.bench(schedule: seed)
    try bench.host.run {
      let image = try await bench.open()
      var options = shape.workload(operations: 40)
      // Away from the end of the disk, which moves.
      options.regions = Array(shape.regions.prefix(1))
      let workload = Workload(
        image: image, file: bench.file, model: bench.model, options: options, seed: seed)
      await withTaskGroup(of: Void.self) { group in
        group.addTask { await workload.run() }
        group.addTask {
          do {
            for size in [sizes.large, sizes.small, sizes.large, sizes.small] {
              try await image.resize(to: size)
              await image.maintain()
            }
          } catch { Issue.record("\(error)") }
        }
      }
      #expect(workload.problems.isEmpty, "\(workload.problems)")
      try await image.close()
    }
    check(bench, shape, sizes, seed)
    let states = try CrashCheck(bench, seed: seed).run(perCut: 1)
    print("bitmap resize power cut: \(states) crash states, \(shape.testDescription)")
  }

  private func check(
    _ bench: Bench, _ shape: BitmapShape, _ sizes: (small: UInt64, large: UInt64), _ seed: UInt64
  ) {
    let crashes = CrashEnumerator(
      original: bench.original, events: bench.recording.events, seed: seed)
    let check = BitmapCheck(shape.names, bench)
    let touched = bench.model.touched
    crashes.visit(perCut: 2) { state in
      let problem =
        Self.misfit(state.bytes, sizes) ?? check.missing(in: state.bytes, touched: touched)
      guard let problem else { return true }
      Issue.record("seed \(seed): \(state.description): \(problem)")
      return false
    }
    #expect(ImageVerifier(bench.bytes).check().leaks == 0, "leaks after a clean close")
  }

  /// Which bitmap's table does not fit the virtual size; nil if all do.
  private static func misfit(
    _ bytes: ImageBytes, _ sizes: (small: UInt64, large: UInt64)
  ) -> String? {
    let size = bytes.be64(24)
    if size & ~511 != sizes.small && size != sizes.large { return "the size is \(size)" }
    let verifier = ImageVerifier(bytes)
    guard let bitmaps = verifier.bitmaps else { return "the autoclear bit is gone" }
    let bitsPerCluster = UInt64(8) << bytes.be32(20)
    for bitmap in bitmaps where bitmap.flags & 1 == 0 {
      let bits = (size + (1 << bitmap.granularityBits) - 1) >> bitmap.granularityBits
      let words = (bits + 63) / 64 * 64
      let needed = (words + bitsPerCluster - 1) / bitsPerCluster
      if bitmap.tableSize != Int(needed) {
        return "bitmap \(bitmap.name) has \(bitmap.tableSize) entries, expected \(needed)"
      }
    }
    return nil
  }

  @Test(
    "What is added has no bits, and gets them as it is written; what was cut off has none when it comes again",
    arguments: BitmapShape.all, [false, true])
  func whatIsAddedHasNoBits(shape: BitmapShape, isCut: Bool) throws {
    let sizes = Self.sizes(shape)
    let bench = shape.bench(schedule: nil)
    let written = Int(sizes.large / 512) - 3
    try bench.host.run {
      let image = try await bench.open()
      let worker = MiniWorker(target: image, file: bench.file, worker: 0)
      try await image.resize(to: sizes.large)
      let buffer = IOBuffer(count: 512)
      let write = BlockRequest(
        .write, offset: GuestOffset(UInt64(written) * 512), length: 512, data: buffer.data)
      #expect(await worker.perform(write, slot: 0) == nil)
      if isCut {
        try await image.resize(to: sizes.small)
        try await image.resize(to: sizes.large)
      }
      try await image.close()
    }
    let before = ImageVerifier(bench.original)
    let now = ImageVerifier(bench.bytes)
    #expect(now.check().errors == [])
    for (bitmap, old) in zip(now.bitmaps ?? [], before.bitmaps ?? []) where old.flags & 1 == 0 {
      let isTracked = shape.names.contains(bitmap.name)
      let perBit = (1 << bitmap.granularityBits) / 512
      let end = Int(sizes.small / 512)
      let wrong = stride(from: 0, to: Int(sizes.large / 512), by: perBit).first { sector in
        let had = sector < end && before.isSet(old, sector: sector)
        let isWritten = isTracked && !isCut && sector / perBit == written / perBit
        return now.isSet(bitmap, sector: sector) != (had || isWritten)
      }
      #expect(wrong == nil, "\(bitmap.name)")
    }
  }
}
