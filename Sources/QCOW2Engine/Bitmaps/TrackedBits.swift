import BlockCore
import Synchronization

/// The bits of one tracked bitmap in memory, twice: what has changed, and what is durably set.
///
/// *Exact* bits cover every range that a request has asked to change; they are only ever set.
/// *Durable* bits are set, durably, in the bitmap on the host file. A request may change a range
/// once its durable bits are all set; it sets the exact ones first. Whoever clears bits on the host
/// file takes the durable ones away first, and copies the exact ones then. All these accesses are
/// sequentially consistent, so one of the two sees the other: no bit that a request relies on is
/// lost.
///
/// Bit n is bit n % 64 of word n / 64; little-endian words are the bitmap's bytes.
/// Source: qcow2 specification, "Bitmap data".
@safe
struct TrackedBits: @unchecked Sendable {  // why: atomics in stable storage
  private let exact: UnsafeMutablePointer<Atomic<UInt64>>
  private let durable: UnsafeMutablePointer<Atomic<UInt64>>
  private let granularityBits: UInt64
  /// The bits of the bitmap.
  let count: UInt64
  /// The words that hold them.
  let words: Int

  /// All bits are zero.
  ///
  /// - Parameters:
  ///   - count: the bits of the bitmap.
  ///   - granularityBits: log2 of the guest bytes that one bit is for.
  ///   - region: outlives the bits; see ``BitmapWords``.
  ///   - offset: where twice ``words(_:)`` words of zeros lie in it.
  init(count: UInt64, granularityBits: UInt8, in region: MetadataRegion, at offset: Int) {
    self.count = count
    self.granularityBits = UInt64(granularityBits)
    words = Self.words(count)
    let all = unsafe region.values(Atomic<UInt64>.self, at: offset, count: 2 * words)
    unsafe exact = unsafe all
    unsafe durable = unsafe all + words
  }

  /// Tells these bits from all others.
  var address: UInt { unsafe UInt(bitPattern: exact) }

  /// The words that `count` bits take.
  static func words(_ count: UInt64) -> Int { Int(count / 64 + (count % 64 == 0 ? 0 : 1)) }

  /// The memory that a bitmap of `count` bits takes, in bytes.
  static func memory(count: UInt64) -> UInt64 { (count / 64 + 1) * 16 }

  /// The bits that cover a range of guest bytes, as far as the bitmap reaches.
  @inline(__always) func bits(_ bytes: Range<UInt64>) -> Range<UInt64> {
    let last = (bytes.upperBound &- 1) >> granularityBits
    let end = min(last &+ 1, count)
    return min(bytes.lowerBound >> granularityBits, end)..<end
  }

  // MARK: Requests

  /// Sets the exact bits of `bits`; `isNew` becomes true if any was not set before.
  ///
  /// - Returns: whether all durable bits are set.
  @inline(__always) func note(_ bits: Range<UInt64>, isNew: inout Bool) -> Bool {
    var isDurable = true
    var at = bits.lowerBound
    while at < bits.upperBound {
      let index = Int(truncatingIfNeeded: at >> 6)
      let mask = Self.mask(at, bits.upperBound)
      YieldPoint.bitmap.pass()
      if unsafe exact[index].load(ordering: .sequentiallyConsistent) & mask != mask {
        YieldPoint.bitmap.pass()
        unsafe exact[index].bitwiseOr(mask, ordering: .sequentiallyConsistent)
        isNew = true
      }
      YieldPoint.bitmap.pass()
      if unsafe durable[index].load(ordering: .sequentiallyConsistent) & mask != mask {
        isDurable = false
      }
      at = (at | 63) &+ 1
    }
    return isDurable
  }

  /// The bits from `first` on that lie in its word and below `end`.
  @inline(__always) private static func mask(_ first: UInt64, _ end: UInt64) -> UInt64 {
    let from = UInt64.max << (first & 63)
    let rest = end &- (first & ~63)
    return rest >= 64 ? from : from & ~(UInt64.max << rest)
  }

  // MARK: The host file's side; one task at a time

  /// Whether all durable bits of `bits` are set.
  func isDurable(_ bits: Range<UInt64>) -> Bool {
    var at = bits.lowerBound
    while at < bits.upperBound {
      let mask = Self.mask(at, bits.upperBound)
      if unsafe durable[Int(at >> 6)].load(ordering: .sequentiallyConsistent) & mask != mask {
        return false
      }
      at = (at | 63) + 1
    }
    return true
  }

  /// Notes that the bits are durably set on the host file.
  func becameDurable(_ bits: Range<UInt64>) {
    var at = bits.lowerBound
    while at < bits.upperBound {
      YieldPoint.bitmap.pass()
      unsafe durable[Int(at >> 6)].bitwiseOr(
        Self.mask(at, bits.upperBound), ordering: .sequentiallyConsistent)
      at = (at | 63) + 1
    }
  }

  /// Sets exact bits that come from elsewhere; they are not durable.
  func setExact(_ bits: Range<UInt64>) {
    var at = bits.lowerBound
    while at < bits.upperBound {
      unsafe exact[Int(at >> 6)].bitwiseOr(
        Self.mask(at, bits.upperBound), ordering: .sequentiallyConsistent)
      at = (at | 63) + 1
    }
  }

  /// Copies exact words as a bitmap has them on the host file; zeros beyond its end.
  func copyExact(_ range: Range<Int>, to bytes: UnsafeMutableRawPointer) {
    for (position, index) in range.enumerated() {
      let value =
        unsafe index < words ? exact[index].load(ordering: .sequentiallyConsistent) : 0
      unsafe bytes.storeBytes(of: value.littleEndian, toByteOffset: position * 8, as: UInt64.self)
    }
  }

  /// Sets bits that were found set on the host file, while nobody else knows the bitmap.
  func load(_ bits: Range<UInt64>) {
    var at = bits.lowerBound
    while at < bits.upperBound {
      unsafe exact[Int(at >> 6)].bitwiseOr(Self.mask(at, bits.upperBound), ordering: .relaxed)
      at = (at | 63) + 1
    }
    becameDurable(bits)
  }

  /// Takes the words from `first` on from the bytes found on the host file; bits beyond the end of
  /// the bitmap are ignored.
  func load(_ bytes: UnsafeRawPointer, words: Int, from first: Int) {
    for index in 0..<min(words, self.words - first) {
      let raw = unsafe bytes.loadUnaligned(fromByteOffset: index * 8, as: UInt64.self)
      let mask = Self.mask(UInt64(first + index) * 64, count)
      let value = UInt64(littleEndian: raw) & mask
      unsafe exact[first + index].store(value, ordering: .relaxed)
      unsafe durable[first + index].store(value, ordering: .relaxed)
    }
  }

  /// Stops calling bits durable that nothing has asked for.
  ///
  /// The host file may then get what ``copy(_:to:adding:)`` gives: a request that has seen a
  /// durable bit before had set the exact one before that, so the copy has it.
  func dropExcess(_ range: Range<Int>) {
    for index in range.clamped(to: 0..<words) {
      YieldPoint.bitmap.pass()
      let held = unsafe durable[index].load(ordering: .sequentiallyConsistent)
      let excess = unsafe held & ~exact[index].load(ordering: .sequentiallyConsistent)
      if excess == 0 { continue }
      YieldPoint.bitmap.pass()
      unsafe durable[index].bitwiseAnd(~excess, ordering: .sequentiallyConsistent)
    }
  }

  /// Writes words as they should be on the host file: exact, durable and `added` bits.
  ///
  /// Words beyond the end of the bitmap are zero.
  func copy(
    _ range: Range<Int>, to bytes: UnsafeMutableRawPointer, adding added: [Range<UInt64>]
  ) {
    for (position, index) in range.enumerated() {
      var value: UInt64 = 0
      if index < words {
        YieldPoint.bitmap.pass()
        value = unsafe exact[index].load(ordering: .sequentiallyConsistent)
        YieldPoint.bitmap.pass()
        value |= unsafe durable[index].load(ordering: .sequentiallyConsistent)
        for range in added {
          let part = range.clamped(to: UInt64(index) * 64..<UInt64(index + 1) * 64)
          if !part.isEmpty { value |= Self.mask(part.lowerBound, part.upperBound) }
        }
      }
      unsafe bytes.storeBytes(of: value.littleEndian, toByteOffset: position * 8, as: UInt64.self)
    }
  }

  /// Whether all, or any, of the exact bits of `bits` are set.
  func exactBits(of bits: Range<UInt64>) -> (all: Bool, any: Bool) {
    var all = true
    var any = false
    var at = bits.lowerBound
    while at < bits.upperBound {
      let mask = Self.mask(at, bits.upperBound)
      let found = unsafe exact[Int(at >> 6)].load(ordering: .sequentiallyConsistent) & mask
      if found != mask { all = false }
      if found != 0 { any = true }
      at = (at | 63) + 1
    }
    return (all, any)
  }
}
