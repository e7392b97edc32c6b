import BlockCore
import Serving
import Uring

/// Commands that the driver refuses.
///
/// If the driver refuses a result, the request stays in the driver, and its sender waits until the
/// character device is closed. So errors that may pass are tried again. If they do not pass, the queue is
/// lost: the control thread is told and ends the device, and the driver fails the requests that are left.
extension QueueWorker {
  /// For how long commands are tried again while none succeeds.
  private static let patience: UInt64 = 5_000_000_000
  private static let pause = 10

  /// Calls `command`, after a pause, to send again what the driver has refused with `error`.
  ///
  /// The queue is lost instead before it serves, at its end, and when no command has succeeded for too long.
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

  /// The queue cannot go on; before it serves, ``QueueThread`` handles that.
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

  /// Whether the worker has no request left.
  ///
  /// The driver fails the requests that it still has, or hands over from now on.
  var isDrained: Bool { requests.inFlight == 0 }
}
