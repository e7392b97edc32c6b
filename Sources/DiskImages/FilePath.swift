package import BlockCore
import Glibc

/// Paths as texts, apart from what the file system says of them.
package enum FilePath {
  /// `path` made independent of the current directory; symbolic links stay as they are.
  ///
  /// An empty path, which names nothing, stays empty.
  package static func absolute(_ path: String) throws(Errno) -> String {
    if path.isEmpty || path.hasPrefix("/") { return path }
    return combine(try currentDirectory() + "/", path)
  }

  /// The current directory, absolute.
  static func currentDirectory() throws(Errno) -> String {
    guard let current = unsafe getcwd(nil, 0) else { throw Errno(errno) }
    defer { unsafe free(current) }
    return try unsafe text(current)
  }

  /// `name` below the directory of `path`; an absolute `name` as it is.
  package static func combine(_ path: String, _ name: String) -> String {
    if name.hasPrefix("/") { return name }
    return directory(of: path) + name
  }

  /// Everything up to the last slash, with it.
  static func directory(of path: String) -> String {
    guard let slash = path.lastIndex(of: "/") else { return "" }
    return String(path[...slash])
  }

  /// The one name of what is at `path`: absolute, no symbolic links, no dots.
  static func real(_ path: String) throws(Errno) -> String {
    guard let resolved = unsafe realpath(path, nil) else { throw Errno(errno) }
    defer { unsafe free(resolved) }
    return try unsafe text(resolved)
  }

  /// - Throws: EILSEQ for a path that is no text: repaired, it would be another one.
  private static func text(_ path: UnsafePointer<CChar>) throws(Errno) -> String {
    guard let text = unsafe String(validatingCString: path) else { throw Errno(EILSEQ) }
    return text
  }
}
