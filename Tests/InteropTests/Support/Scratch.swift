import Glibc
import TestTools

typealias Scratch = TemporaryDirectory

extension TemporaryDirectory {
  /// In memory, or in /tmp; in `parent`, if that is given.
  convenience init(parent: String? = nil) throws { try self.init(in: parent ?? Self.parent) }

  /// /dev/shm if it has 2 GiB to spare.
  private static let parent: String = {
    var space = statvfs()
    guard statvfs("/dev/shm", &space) == 0, access("/dev/shm", W_OK) == 0 else { return "/tmp" }
    return UInt64(space.f_bavail) * UInt64(space.f_frsize) >= 2 << 30 ? "/dev/shm" : "/tmp"
  }()
}
