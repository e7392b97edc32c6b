/// Chooses how much more than what was asked for is set at once.
///
/// Setting a bit costs a sync, a thousand bits cost the same one. A request's whole aligned region
/// is set; where requests have come in order, regions ahead as well, twice as far each time.
struct IntentStreams {
  private struct Stream {
    var end: UInt64
    var length: UInt64
  }

  /// The bytes of a region.
  let region: UInt64
  private static let streamCount = 16
  private static let mostRegions: UInt64 = 16
  private var streams: [Stream] = []
  private var next = 0

  /// - Parameter region: In bytes; a power of two from 4096 to 2^40, or what comes nearest.
  init(region: UInt64) {
    let bounded = min(max(region, 4096), 1 << 40)
    self.region = 1 << UInt64(63 - bounded.leadingZeroBitCount)
  }

  /// The bytes to set for a request: its regions, and those ahead of it.
  mutating func intent(for bytes: Range<UInt64>) -> Range<UInt64> {
    let first = bytes.lowerBound & ~(region - 1)
    let last = (bytes.upperBound - 1) | (region - 1)
    var end = last == .max ? last : last + 1
    if let found = streams.firstIndex(where: { $0.end == first }) {
      let length = min(streams[found].length * 2, region * Self.mostRegions)
      let (ahead, overflows) = first.addingReportingOverflow(length)
      end = max(end, overflows ? .max : ahead)
      streams[found] = Stream(end: end, length: length)
    } else if !streams.contains(where: { $0.end == end }) {
      note(Stream(end: end, length: region))
    }
    return first..<end
  }

  private mutating func note(_ stream: Stream) {
    if streams.count < Self.streamCount {
      streams.append(stream)
    } else {
      streams[next] = stream
      next = (next + 1) % Self.streamCount
    }
  }
}
