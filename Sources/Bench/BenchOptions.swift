import QCOW2Engine

/// The load that `qublk bench` makes; options and meanings are qemu-img bench's.
package struct BenchOptions: Sendable {
  /// The largest memory for data, over all queues, in bytes.
  package static let memoryLimit = 4 << 30

  /// The number of requests, over all queues; nil for as many as the time allows.
  package var count: Int?
  /// How long requests are begun; nil for as long as it takes.
  package var seconds: Double?
  /// Requests in flight per queue.
  package var depth = 64
  /// Bytes per request; a multiple of 512.
  package var bufferSize = 4096
  /// Bytes from one request's start to the next; a multiple of 512, above 0.
  package var stepSize = 4096
  /// The first byte of the first request; a multiple of 512.
  package var offset: UInt64 = 0
  /// How many of a hundred requests are reads.
  package var readPercent = 100
  /// Offsets are any multiple of the step from `offset` on, in place of one after the other.
  package var isRandom = false
  /// What random choices depend on, and nothing else does.
  package var seed: UInt64 = 1
  /// Each write is durable when it is done.
  package var writesThrough = false
  /// A flush whenever the number of requests left is a multiple of this; 0 for none.
  package var flushInterval = 0
  /// A flush waits until the writes before it are done.
  package var drainsForFlush = true
  /// The byte that writes are filled with.
  package var pattern: UInt8 = 0
  /// Worker threads, each with a ring of its own.
  package var queues = 1

  /// What no option changes.
  package init() {}

  var writes: Bool { readPercent < 100 }
  var reads: Bool { readPercent > 0 }
}

/// `--mix`: how many of a hundred requests are reads, "70" or "70:30".
package struct BenchMix: Equatable {
  /// From 0 to 100.
  package let readPercent: Int

  /// Reads the option; nil for anything else.
  package init?(_ text: String) {
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
