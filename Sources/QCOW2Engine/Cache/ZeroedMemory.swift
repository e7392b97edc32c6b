import BlockCore
import Glibc

/// Memory of a size that an image or its user chose: there may be none.
enum ZeroedMemory {
  /// `count` values of which all bytes are zero, to be given to free(3); memory that the system has not
  /// handed out before is not touched.
  ///
  /// - Throws: ``ImageError/noMemory(bytes:)``.
  static func allocate<T: ~Copyable>(_ count: Int) throws(ImageError) -> UnsafeMutablePointer<T> {
    let stride = MemoryLayout<T>.stride
    guard let memory = unsafe calloc(count, stride) else {
      throw .noMemory(bytes: count.multipliedReportingOverflow(by: stride).partialValue)
    }
    return unsafe memory.bindMemory(to: T.self, capacity: count)
  }
}

extension IOBuffer {
  /// A buffer for a table of which an image says how long it is.
  static func ofTable(_ bytes: Int) throws(ImageError) -> IOBuffer {
    guard let buffer = IOBuffer(ifPossible: bytes) else { throw .noMemory(bytes: bytes) }
    return buffer
  }
}
