/// The asynchronous operations in flight on one ring, each with the continuation that waits.
///
/// Slots never move, so the kernel may hold the address of a slot's timespec. Memory comes in
/// chunks of 256 slots and is kept.
@safe
struct OperationSlots: ~Copyable {
  @safe
  struct Slot {
    var continuation: UnsafeContinuation<Int32, Never>?
    var nextFree: Int32
    var isTimer: Bool
    /// Seconds and nanoseconds of a timer.
    var timespec: (Int64, Int64)
  }

  private static let chunkSize = 256
  private static let maximumChunks = 256
  private var chunks: [UnsafeMutablePointer<Slot>] = unsafe []
  private var firstFree: Int32 = -1
  /// The number of slots taken.
  private(set) var inFlight = 0

  init() { unsafe chunks.reserveCapacity(Self.maximumChunks) }

  deinit { unsafe chunks.forEach { unsafe $0.deallocate() } }

  /// The address of slot `index`, which was handed out by ``take(_:)``.
  subscript(index: Int) -> UnsafeMutablePointer<Slot> {
    unsafe chunks[index / Self.chunkSize] + index % Self.chunkSize
  }

  /// The address of the timespec of slot `index`.
  func timespec(_ index: Int) -> UnsafeRawPointer {
    let offset = MemoryLayout<Slot>.offset(of: \.timespec)
    return unsafe UnsafeRawPointer(self[index]) + (offset ?? 0)
  }

  /// Whether ``take(_:)`` can hand out a slot.
  mutating func hasRoom() -> Bool {
    if firstFree >= 0 { return true }
    guard unsafe chunks.count < Self.maximumChunks else { return false }
    let chunk = UnsafeMutablePointer<Slot>.allocate(capacity: Self.chunkSize)
    let base = unsafe chunks.count * Self.chunkSize
    for index in 0..<Self.chunkSize {
      let next = index + 1 < Self.chunkSize ? Int32(base + index + 1) : -1
      unsafe (chunk + index).initialize(
        to: Slot(continuation: nil, nextFree: next, isTimer: false, timespec: (0, 0)))
    }
    unsafe chunks.append(chunk)
    firstFree = Int32(base)
    return true
  }

  /// Takes a free slot; ``hasRoom()`` has just said that there is one.
  mutating func take(_ continuation: UnsafeContinuation<Int32, Never>) -> Int {
    let index = Int(firstFree)
    let slot = unsafe self[index]
    firstFree = unsafe slot.pointee.nextFree
    unsafe slot.pointee.continuation = unsafe continuation
    unsafe slot.pointee.isTimer = false
    inFlight += 1
    return index
  }

  /// Frees the slot and returns who waited in it.
  mutating func release(_ index: Int) -> UnsafeContinuation<Int32, Never>? {
    let slot = unsafe self[index]
    let continuation = unsafe slot.pointee.continuation
    assert(unsafe continuation != nil, "an operation completes that nobody waits for")
    unsafe slot.pointee.continuation = nil
    unsafe slot.pointee.nextFree = firstFree
    firstFree = Int32(index)
    inFlight -= 1
    return unsafe continuation
  }

  /// Calls `body` for each timer in flight.
  func forEachTimer(_ body: (_ index: Int) -> Void) {
    for index in unsafe 0..<chunks.count * Self.chunkSize
    where unsafe self[index].pointee.continuation != nil && self[index].pointee.isTimer {
      body(index)
    }
  }
}
