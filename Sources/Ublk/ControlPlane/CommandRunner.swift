import BlockCore
import CPlatform
import CUblk
import CUring
import Glibc
import Synchronization
import Uring

/// One command, its memory and its result; alive until the kernel has answered, however late.
@safe
final class CommandRequest: @unchecked Sendable {
  // why: filled before it is posted, `result` read after `isDone` was seen.
  let command: ControlCommand
  var header: ublk_control_command
  /// The memory that `header.addr` points to.
  let buffer: IOBuffer?
  private(set) var result: Int32 = 0
  private let isDone: UnsafeMutablePointer<UInt32>
  private let lock = FutexLock(.leaf)

  init(_ command: ControlCommand, device: UInt32, queue: UInt16 = .max, buffer: IOBuffer? = nil) {
    self.command = command
    self.buffer = buffer
    header = ublk_control_command()
    header.dev_id = device
    header.queue_id = queue
    if let buffer {
      header.addr = unsafe UInt64(UInt(bitPattern: buffer.base))
      header.len = UInt16(buffer.count)
    }
    unsafe isDone = .allocate(capacity: 1)
    unsafe isDone.initialize(to: 0)
  }

  deinit { unsafe isDone.deallocate() }

  func complete(_ result: Int32) {
    lock.withLock {
      self.result = result
      unsafe isDone.pointee = 1
    }
    unsafe qublk_futex_wake(isDone, 1)
  }

  /// Waits for the result; nil when `milliseconds` have passed without one.
  func wait(milliseconds: Int) -> Int32? {
    let end = MonotonicClock.milliseconds() + UInt64(milliseconds)
    while true {
      if let result = lock.withLock({ unsafe isDone.pointee == 1 ? self.result : nil }) {
        return result
      }
      let now = MonotonicClock.milliseconds()
      if now >= end { return nil }
      _ = unsafe qublk_futex_wait_for(isDone, 0, end - now)
    }
  }
}

/// A thread with its own ring of 128-byte entries that sends control commands, one at a time.
///
/// Whoever gives up waiting abandons the runner: its thread stays in the kernel for as long as the
/// command takes, and touches nothing that anyone else uses.
@safe
final class CommandRunner: @unchecked Sendable {
  // why: `pending` and `isClosing` are guarded by `lock`.
  private let descriptor: Int32
  private let lock = FutexLock(.leaf)
  private var pending: CommandRequest?
  private var isClosing = false
  private let signal: UnsafeMutablePointer<UInt32>

  init() throws(UblkError) {
    descriptor = unsafe open("/dev/ublk-control", O_RDWR | O_CLOEXEC)
    unsafe signal = .allocate(capacity: 1)
    unsafe signal.initialize(to: 0)
    if descriptor < 0 { throw .noControlDevice(Errno(errno)) }
    do throws(Errno) {
      let thread = try WorkerThread(name: "qublk-control") { [self] in serve() }
      thread.detach()
    } catch { throw .noControlRing(error) }
  }

  deinit {
    unsafe signal.deallocate()
    if descriptor >= 0 { close(descriptor) }
  }

  func post(_ request: CommandRequest) {
    lock.withLock {
      pending = request
      unsafe signal.pointee &+= 1  // a change counter; wraps by design
    }
    unsafe qublk_futex_wake(signal, 1)
  }

  /// Ends the thread once it is idle.
  func retire() {
    lock.withLock {
      isClosing = true
      unsafe signal.pointee &+= 1  // a change counter; wraps by design
    }
    unsafe qublk_futex_wake(signal, 1)
  }

  private func serve() {
    let ring = UnsafeMutablePointer<io_uring>.allocate(capacity: 1)
    defer { unsafe ring.deallocate() }
    unsafe ring.initialize(to: io_uring())
    let status = unsafe qublk_ring_init(ring, 4, 0, 1, 0)
    while let request = next() {
      if status < 0 {
        request.complete(status)
        continue
      }
      let size = UInt32(MemoryLayout<ublk_control_command>.size)
      unsafe request.complete(
        qublk_ring_command(ring, descriptor, request.command.opcode, &request.header, size))
    }
    if status == 0 { unsafe io_uring_queue_exit(ring) }
  }

  private func next() -> CommandRequest? {
    while true {
      let (request, closing, seen) = lock.withLock {
        defer { pending = nil }
        return unsafe (pending, isClosing, signal.pointee)
      }
      if let request { return request }
      if closing { return nil }
      unsafe qublk_futex_wait(signal, seen)
    }
  }
}
