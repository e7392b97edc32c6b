import HostFiles
package import QCOW2Tools

/// The image locks of the commands that work on a file themselves.
package enum ToolLock {
  /// Takes the locks of a process that rewrites the image.
  package static func writer(_ descriptor: Int32) throws(ToolError) {
    try acquire(.writer, descriptor)
  }

  /// Takes the locks of a process that reads the image; nobody may change it meanwhile.
  package static func reader(_ descriptor: Int32) throws(ToolError) {
    try acquire(.reader, descriptor)
  }

  /// Takes no locks (`-U`).
  package static func none(_ descriptor: Int32) throws(ToolError) {}

  private static func acquire(_ use: ImageLock.Use, _ descriptor: Int32) throws(ToolError) {
    do throws(ImageLockError) {
      try ImageLock.acquire(use, descriptor: descriptor)
    } catch {
      switch error {
      case .system(let errno): throw .host(.lock, errno: errno)
      case .inUse, .refused: throw .inUse(reason: error.text)
      }
    }
  }
}
