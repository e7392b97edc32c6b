import BlockCore
import Glibc
import TestTools

/// An empty file that goes away with the object, and its descriptor.
final class TemporaryFile {
  let descriptor: Int32
  private let directory: TemporaryDirectory

  var path: String { directory.file("file") }

  init(directory parent: String = "/var/tmp") throws {
    directory = try TemporaryDirectory(in: parent)
    descriptor = open(directory.file("file"), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
    if descriptor < 0 { throw Errno(errno) }
  }

  deinit { close(descriptor) }
}
