import BlockCore
import Glibc

/// Makes the names in a directory durable.
enum DirectorySync {
  /// Syncs the directory that a path lies in.
  ///
  /// - Returns: Why it cannot be synced; nil if it is, or if its file system has no such call and needs none.
  static func sync(directoryOf path: String) -> Errno? {
    let directory = path.lastIndex(of: "/").map { String(path[...$0]) } ?? "."
    let descriptor = unsafe open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    guard descriptor >= 0 else { return Errno(errno) }
    defer { close(descriptor) }
    return fsync(descriptor) < 0 && errno != EINVAL ? Errno(errno) : nil
  }
}
