import Glibc
import HostFiles

/// An open image that names another file.
struct Referrer {
  /// The absolute path by which it was opened.
  let path: String
  /// The user who owns the open file; nil if that cannot be found out.
  let owner: UInt32?

  init(path: String, owner: UInt32?) { (self.path, self.owner) = (path, owner) }

  /// The owner is that of the open file: another one may have its name by now.
  init(_ layer: ChainLayer) {
    var status = stat()
    let isKnown = unsafe fstat(layer.file.descriptor, &status) == 0
    self.init(path: layer.path, owner: isKnown ? status.st_uid : nil)
  }
}
