import Glibc

/// A directory that goes away with the object, and all that is in it with it.
///
/// With QUBLK_KEEP in the environment it stays.
package final class TemporaryDirectory: Sendable {
  package let path: String

  /// Makes a directory in `parent`: /tmp may be memory; direct I/O wants /var/tmp.
  package init(in parent: String) throws(POSIXFailure) {
    var template = Array("\(parent)/qublk-test-XXXXXX".utf8CString)
    guard let made = mkdtemp(&template) else { throw POSIXFailure(code: errno, parent) }
    path = String(cString: made)
  }

  deinit {
    if getenv("QUBLK_KEEP") == nil { _ = try? Subprocess("rm", ["-rf", path]).finish() }
  }

  /// The path of a file in the directory.
  package func file(_ name: String) -> String { path + "/" + name }
}
