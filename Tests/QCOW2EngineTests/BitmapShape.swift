import Glibc
import QCOW2Engine
import TestSupport
import Testing

/// An image with persistent bitmaps of many kinds, and which of them must follow changes.
struct BitmapShape: Sendable, CustomTestStringConvertible {
  var clusterBits: Int
  var size: Int
  /// log2 of the granularities of the tracked bitmaps.
  var granularities: [Int]
  var intentBytes: UInt64 = 4096
  /// Bits go back to the exact ones at every background step.
  var isRestless = true
  var cacheSlices: Int?
  var depth = 4
  var overlaps = false

  var testDescription: String {
    "\(1 << clusterBits) B clusters, granularities \(granularities.map { 1 << $0 }), "
      + "intent \(intentBytes), depth \(depth)" + (isRestless ? ", restless" : "")
      + (overlaps ? ", overlapping" : "") + (cacheSlices == nil ? "" : ", small cache")
  }

  /// The last cluster, the last bit and the last sector of the disk are all cut short.
  static let small = BitmapShape(
    clusterBits: 9, size: 7 << 20 | 3 * 512, granularities: [9, 12])
  static let all: [BitmapShape] = {
    var shapes: [BitmapShape] = [small]
    var shape = small
    shape.isRestless = false
    shape.intentBytes = 64 << 10
    shapes.append(shape)
    shape.overlaps = true
    shape.isRestless = true
    shape.cacheSlices = 1
    shapes.append(shape)
    shape = BitmapShape(clusterBits: 12, size: 20 << 20 | 5 * 512, granularities: [9, 14, 16])
    shapes.append(shape)
    shape.depth = 1
    shape.intentBytes = 1 << 20
    shapes.append(shape)
    shapes.append(
      BitmapShape(clusterBits: 16, size: 3 << 20 | 7 * 512, granularities: [16, 9], depth: 2))
    return shapes
  }()

  private var cluster: Int { 1 << clusterBits }
  /// Guest bytes that one entry of the first bitmap's table stands for.
  private var bytesPerEntry: Int { cluster * 8 << granularities[0] }

  /// Sectors where requests go: both ends of the disk, and edges of entries.
  var regions: [Range<Int>] {
    let sectors = size / 512
    var regions = [0..<48, (sectors - 30)..<sectors]
    for edge in stride(from: bytesPerEntry / 512, to: sectors - 60, by: bytesPerEntry / 512) {
      regions.append((edge - 20)..<(edge + 20))
    }
    return regions
  }

  var names: [String] { granularities.map { "tracked \($0)" } }

  var builder: ImageBuilder {
    var builder = ImageBuilder()
    builder.clusterBits = clusterBits
    builder.size = size
    for region in regions {
      let first = region.lowerBound * 512 / cluster
      let last = (region.upperBound * 512 - 1) / cluster
      for guest in first...last where guest % 3 != 1 { builder.mappings[guest] = .data }
    }
    for (number, bits) in granularities.enumerated() {
      var spec = BitmapSpec("tracked \(bits)", granularityBits: bits)
      if number == 0 { spec.entries = [1: .cluster([5, 70, cluster * 8 - 1]), 2: .ones] }
      if number == 1 { spec.entries = [0: .cluster([2])] }
      builder.bitmaps.append(spec)
    }
    builder.bitmaps = builder.bitmaps.map { spec in
      var spec = spec
      let bits = (size + (1 << spec.granularityBits) - 1) >> spec.granularityBits
      spec.entries = spec.entries.filter { $0.key * cluster * 8 < bits }
      return spec
    }
    var disabled = BitmapSpec("disabled", granularityBits: 16, entries: [0: .cluster([1, 3])])
    disabled.flags = 0
    builder.bitmaps.append(disabled)
    var stale = BitmapSpec("stale", granularityBits: 16, entries: [0: .cluster([0])])
    stale.flags = 3
    builder.bitmaps.append(stale)
    return builder
  }

  func bench(schedule: UInt64?) -> Bench {
    let bench = Bench(builder, schedule: schedule)
    bench.options.workers = 2
    bench.options.slotsPerWorker = depth
    bench.options.dirtyAgeMilliseconds = isRestless ? 0 : 1_000_000
    bench.options.bitmapIntentBytes = intentBytes
    bench.options.bitmapQuietMilliseconds = isRestless ? 0 : 1_000_000
    bench.options.cacheBytes = cacheSlices.map { $0 * min(cluster, 4096) }
    return bench
  }

  func workload(operations: Int) -> WorkloadOptions {
    var options = WorkloadOptions()
    options.operations = operations
    options.workers = 2
    options.depth = depth
    options.regions = regions
    options.maximumLength = 12
    options.weights = [5, 40, 6, 8, 16, 10, 8]
    options.overlaps = overlaps
    options.maintainsEvery = 2
    return options
  }
}

/// Compares the bitmaps of an image with what has changed since it was attached.
struct BitmapCheck {
  let names: [String]
  private let original: ImageVerifier
  private let sectors: Int

  init(_ names: [String], _ bench: Bench) {
    self.names = names
    original = ImageVerifier(bench.original)
    sectors = bench.builder.size / 512
  }

  /// What a valid bitmap fails to say: bits that it had, and sectors that differ from those found
  /// when the image was attached; nil if nothing is missing.
  func missing(in bytes: ImageBytes, touched: [Int]) -> String? {
    let now = ImageVerifier(bytes)
    guard let bitmaps = now.bitmaps, let before = original.bitmaps else {
      return "the autoclear bit is gone"
    }
    let changed = touched.filter { differs($0, now) }
    for (bitmap, old) in zip(bitmaps, before) {
      if bitmap.flags != old.flags { return "bitmap \(bitmap.name) has flags \(bitmap.flags)" }
      let isTracked = names.contains(bitmap.name)
      for sector in stride(from: 0, to: sectors, by: 41) + touched {
        let isSet = now.isSet(bitmap, sector: sector)
        let wasSet = original.isSet(old, sector: sector)
        if wasSet && !isSet || !isTracked && isSet != wasSet {
          return "bitmap \(bitmap.name) has changed at sector \(sector)"
        }
      }
      if !isTracked { continue }
      for sector in changed where !now.isSet(bitmap, sector: sector) {
        return "bitmap \(bitmap.name) misses the change of sector \(sector)"
      }
    }
    return nil
  }

  private func differs(_ sector: Int, _ now: ImageVerifier) -> Bool {
    let zeros = [UInt8](repeating: 0, count: 512)
    return zeros.withUnsafeBytes { zeros in
      let old = original.sector(sector).map { UnsafeRawBufferPointer(start: $0, count: 512) }
      let new = now.sector(sector).map { UnsafeRawBufferPointer(start: $0, count: 512) }
      return !(old ?? zeros).elementsEqual(new ?? zeros)
    }
  }

  /// How tracked bitmaps differ from what they had and the bits of `asked` sectors; nil if nowhere.
  func inexact(in bytes: ImageBytes, asked: [Range<Int>]) -> String? {
    let now = ImageVerifier(bytes)
    guard let bitmaps = now.bitmaps, let before = original.bitmaps else {
      return "the autoclear bit is gone"
    }
    for (bitmap, old) in zip(bitmaps, before) where names.contains(bitmap.name) {
      let perBit = (1 << bitmap.granularityBits) / 512
      var bits = Set<Int>()
      for range in asked where !range.isEmpty {
        bits.formUnion((range.lowerBound / perBit)...((range.upperBound - 1) / perBit))
      }
      for sector in 0..<sectors {
        let expected = original.isSet(old, sector: sector) || bits.contains(sector / perBit)
        if now.isSet(bitmap, sector: sector) != expected {
          return "bitmap \(bitmap.name), sector \(sector): is \(!expected), expected \(expected)"
        }
      }
    }
    return nil
  }
}

private func + (stride: StrideTo<Int>, more: [Int]) -> [Int] { Array(stride) + more }
