import BlockCore
import Serving
import Uring

/// Commands that the driver refuses.
///
/// A result that the driver does not take leaves its request in the driver: whoever waits for it waits
/// until the character device is closed. So what may pass is tried again, and if it does not pass the
/// queue is lost: the control thread is told, which ends the device, and the driver fails what is left.
extension QueueWorker {
  /// For how long commands are tried again while none succeeds.
  private static let patience: UInt64 = 5_000_000_000
  private static let pause = 10

  /// Lets `command` send again, after a pause, what the driver has refused with `error`.
  ///
  /// Before the queue serves, at its end, and when nothing has succeeded for too long, it is lost instead.
  func retry(_ error: Errno, _ command: @escaping @Sendable (QueueWorker) -> Void) {
    setup.counters.driverErrors.add()
    loop.readClock()
    if refusedSince == 0 { refusedSince = max(loop.now, 1) }
    guard isServing, !isEnding, loop.now &- refusedSince < Self.patience else { return lose(error) }
    openTags += 1
    spawn { [self] in
      await loop.sleep(milliseconds: Self.pause)
      command(self)
      openTags -= 1
    }
  }

  /// The queue cannot go on; while it does not serve yet, that is for ``QueueThread`` to see.
  func lose(_ error: Errno) {
    guard fetchFailure == nil else { return }
    fetchFailure = error
    if isServing { setup.onLoss(error) }
  }

  /// A command of the per-tag mode has ended without a request: at the end of the device, or in failure.
  func refused(_ tag: Int, _ error: Errno) {
    unsafe tags[tag].phase = .idle
    openTags -= 1
    guard error != .noDevice else { return }
    guard error.mayPass, isServing else {
      setup.counters.driverErrors.add()
      return lose(error)
    }
    retry(error) { worker in
      worker.openTags += 1
      worker.commitAgain(tag)
    }
  }

  /// Whether nothing is left to do for any request: those that the driver has, or hands over from now on,
  /// are its own to fail.
  var isDrained: Bool { requests.inFlight == 0 }
}
