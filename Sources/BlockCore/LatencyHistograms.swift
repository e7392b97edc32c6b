import Glibc

/// Several counts of durations in nanoseconds, side by side in raw memory: one writer, any readers.
///
/// Log-linear buckets, as an HDR histogram has them: durations below 512 ns have a bucket each, and
/// every power of two above is cut into 256. A bucket is at most 1/256 of its durations wide, and
/// what a percentile answers, its middle, is at most 0.2 % off. Durations from ``limit`` on count
/// in the last bucket. Sum and maximum are exact. All memory is there from the start, zero, and the
/// kernel gives pages only where durations fall. Never allocates, locks or waits.
@safe
public struct LatencyHistograms: ~Copyable, @unchecked Sendable {
  // why: the memory is atomics only, and stays until deinit.

  /// 2^bits buckets for each power of two.
  ///
  /// These are computed, not stored, so the first count has nothing to set up.
  @inlinable static var bits: UInt64 { 8 }
  /// Durations from here on are not told apart: 2^40 ns, 18 minutes.
  @inlinable public static var limit: UInt64 { 1 << 40 }
  /// 512 that are exact, and 256 for each power of two from 2^9 to 2^39.
  @inlinable public static var bucketCount: Int { 512 + 31 * 256 }
  @inlinable static var sumPlace: Int { bucketCount }
  @inlinable static var maximumPlace: Int { bucketCount + 1 }
  @inlinable static var bytesPlace: Int { bucketCount + 2 }
  /// Counters of one histogram, up to whole cache lines.
  @inlinable static var stride: Int { (bucketCount + 3 + 7) & ~7 }

  /// The number of histograms.
  public let count: Int
  @usableFromInline let memory: UnsafeMutablePointer<Counter>

  /// Makes empty histograms, which are then told apart by numbers below `count`.
  public init(count: Int) {
    self.count = count
    guard let zeroed = unsafe calloc(count * Self.stride, MemoryLayout<Counter>.stride) else {
      fatalError("no memory for \(count) histograms")
    }
    unsafe memory = zeroed.bindMemory(to: Counter.self, capacity: count * Self.stride)
  }

  deinit { unsafe free(memory) }

  /// The bucket of a duration below ``limit``.
  @inlinable @inline(__always) static func bucket(of duration: UInt64) -> Int {
    // The or makes all that is below 512 ns a bucket of its own number.
    let shift = UInt64(truncatingIfNeeded: 63 &- (duration | 1 << bits).leadingZeroBitCount) &- bits
    return Int(truncatingIfNeeded: shift << bits &+ duration >> shift)
  }

  /// The durations of a bucket.
  static func durations(ofBucket bucket: Int) -> ClosedRange<UInt64> {
    let number = UInt64(bucket)
    let shift = max(number >> bits, 1) - 1
    let first = (number - shift << bits) << shift
    return first...first + (1 << shift - 1)
  }

  /// Counts one duration in histogram `number`, for its only writer, and the bytes that went with
  /// it.
  @inlinable @inline(__always) public func record(
    _ duration: UInt64, bytes: UInt64 = 0, in number: Int
  ) {
    let histogram = unsafe memory + number &* Self.stride
    unsafe histogram[Self.bucket(of: min(duration, Self.limit &- 1))].add()
    unsafe histogram[Self.sumPlace].add(duration)
    unsafe histogram[Self.maximumPlace].raise(to: duration)
    unsafe histogram[Self.bytesPlace].add(bytes)
  }

  /// The bytes that went with all durations of histogram `number`.
  public func bytes(of number: Int) -> UInt64 {
    unsafe memory[number * Self.stride + Self.bytesPlace].current
  }

  /// What histogram `number` holds; a writer at work may be caught between two of its stores.
  public func snapshot(of number: Int) -> LatencySnapshot {
    let histogram = unsafe memory + number * Self.stride
    return unsafe LatencySnapshot(
      counts: (0..<Self.bucketCount).map { unsafe histogram[$0].current },
      sum: histogram[Self.sumPlace].current, maximum: histogram[Self.maximumPlace].current)
  }
}

/// The contents of a histogram, or of several together.
public struct LatencySnapshot: Sendable, Equatable {
  var counts: [UInt64]
  /// Nanoseconds; wraps at 2^64.
  public private(set) var sum: UInt64
  /// The longest duration, exact; 0 if there is none.
  public private(set) var maximum: UInt64

  init(counts: [UInt64], sum: UInt64, maximum: UInt64) {
    self.counts = counts
    self.sum = sum
    self.maximum = maximum
  }

  /// Nothing counted yet.
  public init() {
    self.init(
      counts: Array(repeating: 0, count: LatencyHistograms.bucketCount), sum: 0, maximum: 0)
  }

  /// The number of durations.
  public var count: UInt64 { counts.reduce(0, &+) }

  /// The shortest duration, to the start of its bucket; 0 if there is none.
  public var minimum: UInt64 {
    counts.firstIndex { $0 != 0 }.map { LatencyHistograms.durations(ofBucket: $0).lowerBound } ?? 0
  }

  /// The mean, rounded down; 0 if there is none.
  public var mean: UInt64 {
    let count = count
    return count == 0 ? 0 : sum / count
  }

  /// The duration that a share of all do not exceed: the middle of the bucket of the one with that
  /// rank.
  ///
  /// - Parameter perMillion: The share; 500_000 for the median, clamped to 1_000_000.
  /// - Returns: Between ``minimum`` and ``maximum``; 0 if nothing was counted.
  public func percentile(perMillion: UInt64) -> UInt64 {
    let count = count
    guard count > 0 else { return 0 }
    let (high, low) = count.multipliedFullWidth(by: min(perMillion, 1_000_000))
    let (whole, rest) = UInt64(1_000_000).dividingFullWidth((high, low))
    let rank = max(whole + (rest > 0 ? 1 : 0), 1)
    var seen: UInt64 = 0
    for (bucket, inBucket) in counts.enumerated() where inBucket > 0 {
      seen &+= inBucket
      guard seen >= rank else { continue }
      if bucket == counts.count - 1 { return maximum }
      let durations = LatencyHistograms.durations(ofBucket: bucket)
      let middle = durations.lowerBound + (durations.upperBound - durations.lowerBound) / 2
      return min(middle, maximum)
    }
    return maximum
  }

  /// Adds what another one has counted.
  public mutating func merge(_ other: LatencySnapshot) {
    for bucket in counts.indices { counts[bucket] &+= other.counts[bucket] }
    sum &+= other.sum
    maximum = max(maximum, other.maximum)
  }

  /// The counts since `earlier`, a snapshot of the same histogram.
  ///
  /// The maximum is that of all time if its bucket has grown since, else the end of the highest bucket
  /// that has grown.
  public func since(_ earlier: LatencySnapshot) -> LatencySnapshot {
    var difference = LatencySnapshot()
    for bucket in counts.indices {
      difference.counts[bucket] =
        counts[bucket] > earlier.counts[bucket] ? counts[bucket] - earlier.counts[bucket] : 0
    }
    difference.sum = sum &- earlier.sum
    if let highest = difference.counts.lastIndex(where: { $0 != 0 }) {
      let end =
        highest == counts.count - 1
        ? maximum : LatencyHistograms.durations(ofBucket: highest).upperBound
      difference.maximum = min(maximum, end)
    }
    return difference
  }
}

// MARK: - As text

extension LatencySnapshot {
  /// The buckets that are not empty, as "bucket:count" with spaces in between.
  public var text: String {
    counts.enumerated().lazy.filter { $0.element != 0 }.map { "\($0.offset):\($0.element)" }
      .joined(separator: " ")
  }

  /// Takes ``text`` apart; nil if it is not such text.
  public init?(parsing text: String, sum: UInt64, maximum: UInt64) {
    self.init()
    for item in text.split(separator: " ") {
      let parts = item.split(separator: ":", omittingEmptySubsequences: false)
      guard parts.count == 2, let bucket = Int(parts[0]), counts.indices.contains(bucket),
        let count = UInt64(parts[1])
      else { return nil }
      counts[bucket] = count
    }
    self.sum = sum
    self.maximum = maximum
  }
}
