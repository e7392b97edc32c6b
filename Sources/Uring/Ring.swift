public import BlockCore
public import CUring

/// An io_uring with its queues: submits entries and hands out completions.
///
/// Made and used by one thread only (the kernel is told so, where it knows the flag).
@safe
public struct Ring: ~Copyable {
  @usableFromInline let raw: UnsafeMutablePointer<io_uring>
  private let counters: LoopCounters

  /// Sets a ring up.
  ///
  /// - Parameters:
  ///   - entries: The submission queue's size, rounded up to a power of two.
  ///   - completions: The completion queue's size: at least what can be in flight at once.
  ///   - counters: Where calls of io_uring_enter(2) are counted.
  ///   - isPolled: ``hasNews`` is to be asked.
  /// - Throws: The errno of io_uring_setup(2).
  public init(
    entries: Int, completions: Int, counters: LoopCounters = LoopCounters(), isPolled: Bool = false
  ) throws(Errno) {
    // Nothing is stored before the ring is there: an error after the last property has its value would
    // run `deinit`, too.
    let raw = UnsafeMutablePointer<io_uring>.allocate(capacity: 1)
    unsafe raw.initialize(to: io_uring())
    let result = unsafe qublk_ring_init(
      raw, UInt32(entries), UInt32(completions), 0, isPolled ? 1 : 0)
    if result < 0 {
      unsafe raw.deallocate()
      throw Errno(-result)
    }
    unsafe self.raw = unsafe raw
    self.counters = counters
    // Saves a file lookup per enter; older kernels lack it.
    _ = unsafe io_uring_register_ring_fd(raw)
  }

  deinit {
    unsafe io_uring_queue_exit(raw)
    unsafe raw.deallocate()
  }

  /// Queues `entry`; when the queue is full, submits what it holds first.
  @inlinable public func push(_ entry: SubmissionEntry) {
    var slot = unsafe qublk_ring_next(raw)
    while unsafe slot == nil {
      makeRoom()
      unsafe slot = unsafe qublk_ring_next(raw)
    }
    unsafe UnsafeMutableRawPointer(slot)?.storeBytes(of: entry, as: SubmissionEntry.self)
  }

  @usableFromInline func makeRoom() {
    counters.enters.add()
    let result = unsafe io_uring_submit(raw)
    if result >= 0 || Self.isTransient(-result) { return }
    fatalError("io_uring_enter failed with errno \(-result): the ring is unusable")
  }

  /// Submits everything queued and waits for `count` completions.
  ///
  /// With 0, only lets the kernel post what is ready. May return early: a signal, or a transient
  /// shortage.
  public func enter(waitingFor count: Int) {
    counters.enters.add()
    let result = unsafe qublk_ring_enter(raw, UInt32(count))
    if result >= 0 || Self.isTransient(-result) { return }
    fatalError("io_uring_enter failed with errno \(-result): the ring is unusable")
  }

  /// EINTR, EAGAIN, ENOMEM, EBUSY and ETIME: nothing is lost, the next enter tries again.
  static func isTransient(_ code: Int32) -> Bool {
    code == 4 || code == 11 || code == 12 || code == 16 || code == 62
  }

  /// The completions handed out before what they lead to is submitted: more would leave a disk without
  /// work meanwhile, fewer would cost enters (docs/decisions/0012).
  @usableFromInline static let turn: UInt32 = 16

  /// Calls `body` for completions that are there, 16 at most, without waiting, and returns their number.
  @inlinable @discardableResult
  public func drain(
    _ body: (_ userData: UserData, _ result: Int32, _ flags: CompletionFlags) -> Void
  ) -> Int {
    var head: UInt32 = 0
    let count = min(unsafe qublk_cq_available(raw, &head), Self.turn)
    var index: UInt32 = 0
    while index < count {
      // &+: ring positions wrap at 2^32 by design.
      if let entry = unsafe qublk_cq_at(raw, head &+ index) {
        let (word, result) = unsafe (entry.pointee.user_data, entry.pointee.res)
        let flags = unsafe CompletionFlags(raw: entry.pointee.flags)
        unsafe qublk_cq_advance(raw, 1)
        body(UserData(word: word), result, flags)
      }
      index &+= 1
    }
    return Int(count)
  }

  /// Whether there are completions, or an enter without a wait would bring some; reads memory only.
  ///
  /// Only a ring made with `isPolled` tells of work that the kernel leaves for the next enter.
  var hasNews: Bool { unsafe qublk_ring_has_news(raw) != 0 }

  /// Whether there are completions to ``drain(_:)``.
  var hasCompletions: Bool {
    var head: UInt32 = 0
    return unsafe qublk_cq_available(raw, &head) > 0
  }

  /// The number of entries queued and not yet submitted.
  public var unsubmitted: Int { unsafe Int(qublk_ring_unsubmitted(raw)) }

  // MARK: Tables

  /// Makes a table of `count` file slots, all of them empty.
  public func registerSparseFiles(_ count: Int) throws(Errno) {
    let result = unsafe io_uring_register_files_sparse(raw, UInt32(count))
    if result < 0 { throw Errno(-result) }
  }

  /// Puts files into slots of the table, from `slot` on; -1 empties a slot.
  ///
  /// Entries that the kernel has taken before keep the file that the slot had then.
  public func setFiles(_ files: [Int32], from slot: Int) throws(Errno) {
    let result = unsafe files.withUnsafeBufferPointer {
      unsafe io_uring_register_files_update(raw, UInt32(slot), $0.baseAddress, UInt32($0.count))
    }
    if result < 0 { throw Errno(-result) }
    if Int(result) != files.count { throw Errno.io }
  }

  /// Takes the table of files back, and with it the references that the ring holds.
  public func unregisterFiles() { _ = unsafe io_uring_unregister_files(raw) }

  /// Makes a table of `count` empty buffer slots, for buffers that a driver registers.
  public func registerSparseBuffers(_ count: Int) throws(Errno) {
    let result = unsafe io_uring_register_buffers_sparse(raw, UInt32(count))
    if result < 0 { throw Errno(-result) }
  }

  /// Takes the table of buffers back.
  public func unregisterBuffers() { _ = unsafe io_uring_unregister_buffers(raw) }
}
