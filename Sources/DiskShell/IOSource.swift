import BlockCore
import CPlatform
import Glibc

/// The bytes of a file, to fill writes with.
enum IOSource {
  /// Reads the file's first `most` bytes; a FIFO without a writer has none.
  ///
  /// - Throws: ``IOFailure/source(_:_:)`` if it cannot be read or there are none.
  static func read(_ path: String, most: UInt64) throws(IOFailure) -> [UInt8] {
    let descriptor = unsafe qublk_open_file(path, O_RDONLY | O_NONBLOCK, 0)
    guard descriptor >= 0 else { throw .source(path, .system(Errno(errno))) }
    defer { close(descriptor) }
    var bytes: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 1 << 16)
    while UInt64(bytes.count) < most {
      let wanted = min(chunk.count, Int(most) - bytes.count)
      let count = unsafe Glibc.read(descriptor, &chunk, wanted)
      if count < 0 && errno == EINTR { continue }
      if count < 0 { throw .source(path, .system(Errno(errno))) }
      if count == 0 { break }
      bytes += chunk[..<count]
    }
    if bytes.isEmpty && most > 0 { throw .source(path, .empty) }
    return bytes
  }
}
