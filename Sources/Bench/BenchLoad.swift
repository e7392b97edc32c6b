import BlockCore

/// The requests of one queue, in order: what to do and where.
///
/// Depends on the options, the disk's size and the queue's number alone.
struct BenchLoad {
  enum Step: Equatable {
    case transfer(BlockOperation, offset: UInt64)
    /// A flush is due.
    case flush
    case end
  }

  private let options: BenchOptions
  private let size: UInt64
  /// The places of random requests.
  private let places: UInt64
  private var random: BenchRandom
  private var position: UInt64
  /// Requests still to come; nil for no end.
  private var left: Int?
  private var issued = 0
  private var flushIsDue = false
  /// What is left of the block of 100 requests in which the mix is exact.
  private var block = (reads: 0, all: 0)

  /// - Parameters:
  ///   - options: The load of all queues.
  ///   - size: The bytes of the disk; one request fits in it at least, from `options.offset` on.
  ///   - queue: The number of the queue, below `options.queues`.
  init(_ options: BenchOptions, size: UInt64, queue: Int) {
    self.options = options
    self.size = size
    let room = size - options.offset - UInt64(options.bufferSize)
    places = room / UInt64(options.stepSize) + 1
    random = BenchRandom(options.seed, stream: UInt64(queue))
    let before = options.count.map { Self.requests($0, before: queue, of: options.queues) } ?? 0
    left = options.count.map { Self.requests($0, before: queue + 1, of: options.queues) - before }
    let start =
      options.count == nil
      ? places / UInt64(options.queues) * UInt64(queue) : UInt64(before)
    // Wraps as positions do.
    position = options.offset &+ start &* UInt64(options.stepSize)
    if position >= size { position %= size }
  }

  /// The requests of the queues before one.
  private static func requests(_ count: Int, before queue: Int, of queues: Int) -> Int {
    count / queues * queue + min(count % queues, queue)
  }

  /// Makes the load end now, whatever is left.
  mutating func stop() {
    left = 0
    flushIsDue = false
  }

  /// The next request.
  mutating func next() -> Step {
    if flushIsDue {
      flushIsDue = false
      return .flush
    }
    if left == 0 { return .end }
    if let left { self.left = left - 1 }
    issued += 1
    flushIsDue = options.flushInterval > 0 && (left ?? issued) % options.flushInterval == 0
    let operation = nextOperation()
    return .transfer(operation, offset: nextOffset())
  }

  /// Exactly `readPercent` of each block of 100 are reads, in random order.
  private mutating func nextOperation() -> BlockOperation {
    if !options.writes { return .read }
    if !options.reads { return .write }
    if block.all == 0 { block = (options.readPercent, 100) }
    let isRead = random.below(UInt64(block.all)) < UInt64(block.reads)
    block.all -= 1
    if isRead { block.reads -= 1 }
    return isRead ? .read : .write
  }

  private mutating func nextOffset() -> UInt64 {
    if options.isRandom {
      return options.offset + random.below(places) * UInt64(options.stepSize)
    }
    if position > size - UInt64(options.bufferSize) { position = 0 }
    defer { advance() }
    return position
  }

  private mutating func advance() {
    position += UInt64(options.stepSize)
    if position >= size { position %= size }
  }
}

/// SplitMix64: the same numbers on every machine for the same seed.
struct BenchRandom {
  private var state: UInt64

  /// - Parameters:
  ///   - seed: Any number.
  ///   - stream: Other streams of the same seed have other numbers.
  init(_ seed: UInt64, stream: UInt64) {
    state = seed
    state = next() &+ stream &* 0xd1b5_4a32_d192_ed03
  }

  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var word = state
    word = (word ^ (word >> 30)) &* 0xbf58_476d_1ce4_e5b9
    word = (word ^ (word >> 27)) &* 0x94d0_49bb_1331_11eb
    return word ^ (word >> 31)
  }

  /// A number below `limit`, which is above 0.
  mutating func below(_ limit: UInt64) -> UInt64 { next().multipliedFullWidth(by: limit).high }
}
