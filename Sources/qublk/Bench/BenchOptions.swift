import QCOW2Engine

/// The load that `qublk bench` makes; options and meanings are qemu-img bench's.
struct BenchOptions: Sendable {
  /// The largest memory for data, over all queues, in bytes.
  static let memoryLimit = 4 << 30

  /// The number of requests, over all queues; nil for as many as the time allows.
  var count: Int?
  /// How long requests are begun; nil for as long as it takes.
  var seconds: Double?
  /// Requests in flight per queue.
  var depth = 64
  /// Bytes per request; a multiple of 512.
  var bufferSize = 4096
  /// Bytes from one request's start to the next; a multiple of 512, above 0.
  var stepSize = 4096
  /// The first byte of the first request; a multiple of 512.
  var offset: UInt64 = 0
  /// How many of a hundred requests are reads.
  var readPercent = 100
  /// Offsets are any multiple of the step from `offset` on, in place of one after the other.
  var isRandom = false
  /// What random choices depend on, and nothing else does.
  var seed: UInt64 = 1
  /// Each write is durable when it is done.
  var writesThrough = false
  /// A flush whenever the number of requests left is a multiple of this; 0 for none.
  var flushInterval = 0
  /// A flush waits until the writes before it are done.
  var drainsForFlush = true
  /// The byte that writes are filled with.
  var pattern: UInt8 = 0
  /// Worker threads, each with a ring of its own.
  var queues = 1

  var writes: Bool { readPercent < 100 }
  var reads: Bool { readPercent > 0 }
}

/// `--mix`: how many of a hundred requests are reads, "70" or "70:30".
struct BenchMix: Equatable {
  let readPercent: Int

  init?(_ text: String) {
    let parts = text.split(separator: ":", omittingEmptySubsequences: false)
    guard parts.count <= 2, let reads = Self.percent(parts[0]) else { return nil }
    if parts.count == 2 {
      guard let writes = Self.percent(parts[1]), reads + writes == 100 else { return nil }
    }
    readPercent = reads
  }

  private static func percent(_ text: Substring) -> Int? {
    guard text.allSatisfy({ $0.isASCII && $0.isNumber }), let value = Int(text), value <= 100
    else { return nil }
    return value
  }
}
