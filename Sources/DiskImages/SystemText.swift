package import BlockCore
import Glibc

extension Errno {
  /// The C library's text alone: what QEMU's tools print.
  package var systemText: String {
    guard let text = unsafe strerror(code) else { return "error \(code)" }
    return unsafe String(cString: text)
  }
}
