import BlockCore
import CPlatform
import Glibc
import HostFiles

/// Room in /run/qublk for the files of a device that is about to be made.
///
/// The kernel would keep a device whose files could not be written, and "qublk del" would not know it. So the
/// room is taken before there is a device: by a file as large as all of them, which has no name. It goes with
/// the process at the latest.
final class StateReservation {
  private static let bytes = 24 << 10
  /// The directory, the lock, the state and its draft, the log, the socket, and some to spare.
  private static let inodes = 8

  private var descriptor: Int32

  init() throws(CommandError) {
    let root = StateDirectory.root
    try StateDirectory.make(root)
    let path = "\(root)/.room-\(getpid())"
    descriptor = unsafe qublk_open_file(path, O_WRONLY | O_TRUNC, 1)
    guard descriptor >= 0 else { throw .state(root, Errno(errno)) }
    unsafe unlink(path)
    guard writeAll(descriptor, String(repeating: "\n", count: Self.bytes)), fsync(descriptor) == 0
    else {
      let error = Errno(errno)
      release()
      throw .state(root, error)
    }
    var system = statvfs()
    if unsafe fstatvfs(descriptor, &system) == 0, system.f_files > 0, system.f_ffree < Self.inodes {
      release()
      throw .state(root, .noSpace)
    }
  }

  deinit { release() }

  /// Gives the room to the files.
  func release() {
    if descriptor >= 0 { close(descriptor) }
    descriptor = -1
  }
}
