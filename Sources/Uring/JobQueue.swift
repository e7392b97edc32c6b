/// A growing first-in, first-out queue of executor jobs in raw memory.
@safe
struct JobQueue: ~Copyable {
  private var storage: UnsafeMutablePointer<UnownedJob>
  private var capacity: Int
  private var head = 0
  private var tail = 0

  /// - Parameter capacity: A power of two.
  init(capacity: Int = 256) {
    self.capacity = capacity
    unsafe storage = .allocate(capacity: capacity)
  }

  deinit { unsafe storage.deallocate() }

  var count: Int { tail &- head }  // positions wrap; their distance does not

  mutating func push(_ job: UnownedJob) {
    if count == capacity { grow() }
    unsafe (storage + (tail & (capacity - 1))).initialize(to: job)
    tail &+= 1  // wraps by design
  }

  mutating func pop() -> UnownedJob? {
    guard head != tail else { return nil }
    let job = unsafe (storage + (head & (capacity - 1))).move()
    head &+= 1  // wraps by design
    return job
  }

  private mutating func grow() {
    let larger = UnsafeMutablePointer<UnownedJob>.allocate(capacity: capacity * 2)
    var moved = 0
    while let job = pop() {
      unsafe (larger + moved).initialize(to: job)
      moved += 1
    }
    unsafe storage.deallocate()
    unsafe (storage, capacity, head, tail) = unsafe (larger, capacity * 2, 0, moved)
  }
}
