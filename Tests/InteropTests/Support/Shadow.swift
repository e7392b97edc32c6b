import BlockCore
import CPlatform
import Glibc
import TestTools

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

  /// Carries out a request; a discard or write-zeroes makes `zeroed` read as zeros.
  func apply(_ operation: GuestOperation, zeroed: Range<UInt64>) throws {
    switch operation.kind {
    case .write:
      let buffer = IOBuffer(count: operation.range.count)
      operation.fill(buffer)
      try write(
        UnsafeRawBufferPointer(start: buffer.base, count: buffer.count),
        at: operation.range.lowerBound)
      withExtendedLifetime(buffer) {}
    case .discard, .writeZeroes: try zero(zeroed)
    case .read, .flush: break
    }
  }

  /// The first place at or above `offset` where the file has something else than `bytes`; nil if
  /// there is none.
  func firstDifference(_ bytes: UnsafeRawBufferPointer, at offset: UInt64) -> UInt64? {
    if matches(bytes, at: offset) { return nil }
    let sectors = stride(from: 0, to: bytes.count, by: 512)
    let wrong = sectors.first { start in
      let sector = UnsafeRawBufferPointer(rebasing: bytes[start..<min(start + 512, bytes.count)])
      return !matches(sector, at: offset + UInt64(start))
    }
    return wrong.map { offset + UInt64($0) }
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
