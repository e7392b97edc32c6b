import CPlatform
import Glibc

/// The guest's view of a disk as a raw, sparse file: what an image must read as.
final class Shadow: Sendable {
  let path: String
  let size: UInt64
  private let descriptor: Int32

  /// Makes an empty file, or takes an existing one as it is.
  init(_ path: String, size: UInt64) throws {
    self.path = path
    self.size = size
    descriptor = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
    guard descriptor >= 0, ftruncate(descriptor, off_t(size)) == 0 else {
      throw POSIXFailure(code: errno)
    }
  }

  deinit { close(descriptor) }

  func write(_ bytes: UnsafeRawBufferPointer, at offset: UInt64) throws {
    guard pwrite(descriptor, bytes.baseAddress, bytes.count, off_t(offset)) == bytes.count else {
      throw POSIXFailure(code: errno)
    }
  }

  func zero(_ range: Range<UInt64>) throws {
    if range.isEmpty { return }
    let mode = Int32(QUBLK_FALLOC_PUNCH_HOLE | QUBLK_FALLOC_KEEP_SIZE)
    let code = qublk_fallocate(descriptor, mode, range.lowerBound, UInt64(range.count))
    guard code == 0 else { throw POSIXFailure(code: -code) }
  }

  /// Whether the file has exactly `bytes` at `offset`.
  func matches(_ bytes: UnsafeRawBufferPointer, at offset: UInt64) -> Bool {
    var found = [UInt8](repeating: 0, count: bytes.count)
    guard pread(descriptor, &found, found.count, off_t(offset)) == found.count else {
      return false
    }
    guard let base = bytes.baseAddress else { return true }
    return memcmp(base, found, found.count) == 0
  }
}
