import BlockCore

/// Finds zeros in memory.
enum ZeroScan {
  /// A part of a buffer that is written as data, or is zeros; in bytes of the buffer.
  struct Run: Equatable {
    var range: Range<Int>
    var isZero: Bool
  }

  /// Divides a buffer into data and zeros.
  ///
  /// - Parameters:
  ///   - bytes: The buffer.
  ///   - position: Its place on the disk, which units count from.
  ///   - unit: The bytes of a unit, which is data or zeros as a whole; a power of two.
  ///   - least: Zeros between data that are fewer bytes are data, too.
  /// - Returns: The runs, in their order, neighbours never alike.
  static func runs(
    _ bytes: UnsafeRawBufferPointer, at position: UInt64, unit: UInt64, least: UInt64
  ) -> [Run] {
    var runs: [Run] = []
    var start = 0
    while start < bytes.count {
      let place = position + UInt64(start)
      let end = min(bytes.count, start + Int((place | (unit - 1)) + 1 - place))
      let isZero = unsafe UnsafeRawBufferPointer(rebasing: bytes[start..<end]).isAllZeros
      add(Run(range: start..<end, isZero: isZero), to: &runs, least: least)
      start = end
    }
    return runs
  }

  private static func add(_ run: Run, to runs: inout [Run], least: UInt64) {
    if let last = runs.last, last.isZero == run.isZero {
      runs[runs.count - 1].range = last.range.lowerBound..<run.range.upperBound
    } else if !run.isZero, runs.count > 1, let gap = runs.last, UInt64(gap.range.count) < least {
      runs.removeLast()
      let data = runs[runs.count - 1].range
      runs[runs.count - 1].range = data.lowerBound..<run.range.upperBound
    } else {
      runs.append(run)
    }
  }
}
