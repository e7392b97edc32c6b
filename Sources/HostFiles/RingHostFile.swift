package import BlockCore
import CPlatform
import Glibc
import Synchronization
import Uring

/// A regular file or block device of the host.
///
/// On a worker's thread every transfer goes through the worker's ring and suspends the caller; on
/// any other thread it blocks. Both do exactly the same to the file. Under direct I/O, memory that
/// is not aligned as the file wants goes through a bounce buffer.
package final class RingHostFile: HostFile {
  package let traits: HostFileTraits
  /// The open descriptor; stays the object's.
  package let descriptor: Int32
  /// Whether the page cache is bypassed.
  package let isDirect: Bool
  /// What the addresses of transfers must be multiples of; 1 for buffered.
  package let memoryAlignment: Int
  /// The file lies in a file system that is nothing but memory.
  package let isInMemory: Bool
  /// The open file description, with its locks, is another process's too, and is to outlive this one.
  package let isHeld: Bool
  /// A block device that makes ranges zero without being sent the zeros.
  let clearsAtOnce: Bool
  /// Ways to write zeros and to free space that the host refused once; bits of ``Refusal``.
  let refusals = Atomic<UInt8>(0)
  private let isOpen = Atomic<Bool>(true)
  /// The thread that empties the page cache, until someone waits for it.
  let cacheDrop = Mutex<WorkerThread?>(nil)
  /// What ``openReader()`` has opened; -1 for nothing.
  private let kept = Mutex<Int32>(-1)

  /// Takes `descriptor` over.
  init(
    descriptor: Int32, traits: HostFileTraits, isDirect: Bool, memoryAlignment: Int,
    isHeld: Bool = false, clearsAtOnce: Bool = false
  ) {
    self.descriptor = descriptor
    self.traits = traits
    self.isDirect = isDirect
    self.memoryAlignment = memoryAlignment
    self.isHeld = isHeld
    self.clearsAtOnce = clearsAtOnce
    isInMemory = qublk_is_in_memory(descriptor) != 0
  }

  deinit { closeDescriptor() }

  /// Closes the descriptor, the last that this object has; no transfer may be in flight or come later.
  package func closeDescriptor() {
    guard isOpen.exchange(false, ordering: .relaxed) else { return }
    endCacheDrop()
    closeReader()
    close(descriptor)
  }

  // MARK: A second open

  /// A descriptor for reading the file through the page cache, whose failures another descriptor does not see.
  ///
  /// - Returns: A descriptor that is the caller's to close.
  /// - Throws: The errno of open(2), or of dup(2).
  package func reader() throws(Errno) -> Int32 {
    let reader = try kept.withLock { (kept) throws(Errno) in
      kept < 0 ? try openAgain() : fcntl(kept, F_DUPFD_CLOEXEC, 0)
    }
    if reader < 0 { throw Errno(errno) }
    return reader
  }

  /// Opens the file for ``reader()`` in advance: a process in a sandbox cannot do so later.
  package func openReader() throws(Errno) {
    try kept.withLock { (kept) throws(Errno) in if kept < 0 { kept = try openAgain() } }
  }

  /// Takes ``openReader()`` back.
  package func closeReader() {
    kept.withLock { kept in
      if kept >= 0 { close(kept) }
      kept = -1
    }
  }

  private func openAgain() throws(Errno) -> Int32 {
    let again = unsafe qublk_open("/proc/self/fd/\(descriptor)", 1, 0)
    if again < 0 { throw Errno(-again) }
    return again
  }

  /// Traps in debug builds once the descriptor is closed: its number may be another file's by then.
  func assertOpen() {
    assert(isOpen.load(ordering: .relaxed), "a file is used after it was closed")
  }

  package func sync() async throws(Errno) {
    var attempts = Attempts()
    while true {
      let result = await rawSync()
      if result >= 0 { return }
      try await attempts.retry(after: result)
    }
  }

  package func length() async throws(Errno) -> UInt64 {
    var size: UInt64 = 0
    let result = unsafe qublk_file_size(descriptor, &size)
    if result < 0 { throw Errno(-result) }
    return size
  }

  package func setLength(_ length: UInt64) async throws(Errno) {
    var attempts = Attempts()
    while true {
      let result = await rawTruncate(to: length)
      if result >= 0 { return }
      try await attempts.retry(after: result)
    }
  }
}

/// A bounded number of second chances after EINTR and EAGAIN; see `Errno.pause(beforeAttempt:)`.
struct Attempts {
  private var count = 0

  /// Returns, after a pause, if the operation should be tried again, else throws `result` as the errno
  /// it is.
  mutating func retry(after result: Int32) async throws(Errno) {
    let error = Errno(-result)
    guard let pause = error.pause(beforeAttempt: count) else {
      throw error.isTransient ? .io : error
    }
    count += 1
    guard pause > 0 else { return }
    if let loop = WorkerLoop.current {
      await loop.sleep(milliseconds: pause)
    } else {
      usleep(UInt32(pause) * 1000)
    }
  }
}
