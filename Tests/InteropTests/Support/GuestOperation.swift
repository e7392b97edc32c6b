import BlockCore
import Glibc
import TestTools

/// A request as the tests make it up.
struct GuestOperation: Sendable, CustomStringConvertible {
  var kind: BlockOperation
  var range: Range<UInt64>
  var isFUA = false
  var keepsAllocation = false
  /// What a write writes; see ``fill(_:)``.
  var stamp: UInt64 = 0

  var description: String {
    "\(kind) \(range.lowerBound)+\(range.count)\(isFUA ? " fua" : "")"
      + (keepsAllocation ? " keep" : "")
  }

  /// The data of a write: in each sector a number that says which write and where, and around it
  /// one byte; of every eighth write, bytes that do not compress.
  func fill(_ buffer: IOBuffer) {
    memset(buffer.base, Int32(stamp & 0xff | 1), buffer.count)
    for sector in 0..<(buffer.count / 512) {
      let word = stamp &* 0x1_0000_0001 &+ range.lowerBound / 512 &+ UInt64(sector)
      buffer.base.storeBytes(of: word, toByteOffset: sector * 512, as: UInt64.self)
    }
    if stamp & 7 != 0 { return }
    var random = SeededGenerator(seed: stamp)
    for word in 0..<(buffer.count / 8) where word % 64 != 0 {
      buffer.base.storeBytes(of: random.next(), toByteOffset: word * 8, as: UInt64.self)
    }
  }

  /// The bytes that a discard makes read as zeros: whole units, and the disk's partial last one.
  func discarded(unit: UInt64, diskSize: UInt64) -> Range<UInt64> {
    let first = (range.lowerBound + unit - 1) / unit * unit
    let end = range.upperBound == diskSize ? diskSize : range.upperBound / unit * unit
    return first < end ? first..<end : 0..<0
  }
}

/// Makes up requests that cluster around a few places of the disk.
struct OperationSource {
  private var random: SeededGenerator
  private let clusterSize: UInt64
  /// What half of the aligned requests are multiples of.
  private let subclusterSize: UInt64
  private let diskSize: UInt64
  private var stamp: UInt64

  init(
    _ random: SeededGenerator, clusterSize: UInt64, subclusterSize: UInt64? = nil, diskSize: UInt64
  ) {
    self.random = random
    self.clusterSize = clusterSize
    self.subclusterSize = subclusterSize ?? clusterSize
    self.diskSize = diskSize
    stamp = self.random.next() & 0xffff_ffff
  }

  /// Up to `count` requests that do not overlap, in any order.
  mutating func batch(_ count: Int) -> [GuestOperation] {
    var batch: [GuestOperation] = []
    for _ in 0..<count {
      let next = operation()
      if next.kind == .flush || !batch.contains(where: { $0.range.overlaps(next.range) }) {
        batch.append(next)
      }
    }
    return batch
  }

  mutating func operation() -> GuestOperation {
    let roll = Int.random(in: 0..<100, using: &random)
    stamp += 1
    switch roll {
    case ..<55:
      return GuestOperation(
        kind: .write, range: range(limit: max(1 << 20, clusterSize * 2)), isFUA: random.chance(3),
        stamp: stamp)
    case ..<70:
      return GuestOperation(kind: .read, range: range(limit: max(1 << 20, clusterSize * 2)))
    case ..<83: return GuestOperation(kind: .discard, range: range(limit: 8 << 20))
    case ..<97:
      return GuestOperation(
        kind: .writeZeroes, range: range(limit: 8 << 20), isFUA: random.chance(3),
        keepsAllocation: random.chance(30))
    default: return GuestOperation(kind: .flush, range: 0..<0)
    }
  }

  /// A range in whole sectors, often in whole clusters, at most `limit` bytes long.
  private mutating func range(limit: UInt64) -> Range<UInt64> {
    let sectors = diskSize / 512
    let unit = random.chance(50) ? clusterSize : subclusterSize
    let perCluster = unit / 512
    let isAligned = random.chance(40)
    var start = place(sectors)
    var count =
      isAligned
      ? perCluster * UInt64.random(in: 1...12, using: &random)
      : UInt64.random(in: 1...max(3 * perCluster / 2, 16), using: &random)
    if isAligned { start -= start % perCluster }
    if random.chance(10) { count = 1 }
    count = min(count, limit / 512, sectors - start)
    if random.chance(3) { start = sectors - count }
    return (start * 512)..<((start + count) * 512)
  }

  /// A sector near the start, near the end, or near the middle of a large disk.
  private mutating func place(_ sectors: UInt64) -> UInt64 {
    let window = min(sectors, max(UInt64(3 << 20), clusterSize * 40) / 512)
    let offset = UInt64.random(in: 0..<window, using: &random)
    switch Int.random(in: 0..<4, using: &random) {
    case 0: return sectors - 1 - offset
    case 1: return min(sectors * 62 / 64 + offset, sectors - 1)
    default: return offset
    }
  }
}
