/// The load that `qublk bench` makes; options and meanings are qemu-img bench's.
struct BenchOptions: Sendable {
  /// The number of requests, over all queues.
  var count: Int
  /// Requests in flight per queue.
  var depth: Int
  /// Bytes per request; a multiple of 512.
  var bufferSize: Int
  /// Bytes from one request's start to the next.
  var stepSize: Int
  /// The first byte of the first request; a multiple of 512.
  var offset: UInt64
  var isWrite: Bool
  /// A flush after each so many writes; 0 for none.
  var flushInterval: Int
  /// The byte that writes are filled with.
  var pattern: UInt8
  /// Worker threads, each with a ring of its own.
  var queues: Int
}

/// What one worker, or all of them, did.
struct BenchResult: Sendable {
  var requests = 0
  /// Requests that the hit path answered.
  var hits = 0
  var flushes = 0
  var failures = 0
  var seconds = 0.0
}
