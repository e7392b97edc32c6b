import BlockCore
import CPlatform
import Glibc
import Ublk

/// What a supervisor asks of the driver, each in a child of its own.
///
/// A child's threads and rings go with it: the supervisor keeps one thread, and can be forked again.
enum DriverChild {
  /// Runs `body` in a child and waits.
  ///
  /// - Returns: The exit status; nil without a child, or if a signal has ended it.
  @discardableResult
  static func run(_ body: () -> Void) -> Int32? {
    let child = qublk_process_fork()
    if child == 0 {
      body()
      _exit(0)
    }
    guard child > 0 else { return nil }
    var status: Int32 = 0
    while unsafe waitpid(child, &status, 0) < 0, errno == EINTR {}
    return qublk_wait_signal(status) == 0 ? qublk_wait_exit(status) : nil
  }

  /// Whether the driver has no disk any more for the device; what is left of it is taken away.
  static func isGone(_ device: DeviceName) -> Bool {
    let gone: Int32 = 3
    return run {
      do throws(CommandError) {
        let control = try Control()
        guard control.knows(device) else { _exit(gone) }
        guard try control.info(device).state == .dead else { return }
        try control.end(device)
        _exit(gone)
      } catch { return }
    } == gone
  }

  /// Stops and deletes a device that nobody serves; the child's work.
  ///
  /// Best effort: `qublk del` takes away what stays.
  static func takeAway(_ device: DeviceName) { try? Control().end(device) }

  /// Stops a device that a server serves; the child's work, whose exit status is the errno.
  static func stop(_ device: DeviceName, _ ifUnused: Bool, _ isRecoverable: Bool) -> Never {
    do throws(UblkError) {
      try DeviceStopWork.run(device.id, ifUnused: ifUnused, isRecoverable: isRecoverable)
    } catch {
      guard case .refused(_, let errno) = error else { _exit(EIO) }
      _exit(errno.code)
    }
    _exit(0)
  }
}
