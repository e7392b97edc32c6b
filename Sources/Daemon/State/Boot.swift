import Glibc
import HostFiles

/// This boot of the machine.
enum Boot {
  /// A random number in text, another one at each boot.
  static var id: String {
    String(smallFile("/proc/sys/kernel/random/boot_id").prefix { $0 != "\n" })
  }
}

/// Whether a path leads to a block device now.
func isBlockDevice(_ path: String) -> Bool {
  var status = stat()
  return unsafe stat(path, &status) == 0 && status.st_mode & S_IFMT == S_IFBLK
}
