import Glibc

/// The bytes of a file in memory: sparse, growing, zero where nothing was written.
@safe package final class ImageBytes: @unchecked Sendable {  // why: users order access
  package let base: UnsafeMutableRawPointer
  private let capacity: Int
  /// The length of the file; bytes beyond it are zero.
  package private(set) var length = 0

  /// - Parameter capacity: the largest length; address space only, memory is taken when written.
  package init(capacity: Int = 1 << 32) {
    self.capacity = capacity
    let memory = mmap(
      nil, capacity, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    guard let memory, memory != MAP_FAILED else { fatalError("mmap of \(capacity) bytes failed") }
    base = memory
  }

  deinit { munmap(base, capacity) }

  /// Whether a range fits at all; false means that the test should see ENOSPC or EFBIG.
  package func fits(_ offset: Int, _ count: Int) -> Bool { offset + count <= capacity }

  package func write(_ source: UnsafeRawPointer, count: Int, at offset: Int) {
    precondition(fits(offset, count), "write at \(offset) outside of the simulated file")
    memcpy(base + offset, source, count)
    length = max(length, offset + count)
  }

  package func fill(_ value: UInt8, count: Int, at offset: Int) {
    precondition(fits(offset, count), "fill at \(offset) outside of the simulated file")
    if offset + count <= length || value != 0 {
      memset(base + offset, Int32(value), count)
    } else if offset < length {
      memset(base + offset, 0, length - offset)
    }
    length = max(length, offset + count)
  }

  /// Copies out; zeros beyond the end.
  package func read(into target: UnsafeMutableRawPointer, count: Int, at offset: Int) {
    let available = max(0, min(count, length - offset))
    if available > 0 { memcpy(target, base + offset, available) }
    if available < count { memset(target + available, 0, count - available) }
  }

  package func setLength(_ newLength: Int) {
    if newLength < length { memset(base + newLength, 0, length - newLength) }
    length = newLength
  }

  /// Becomes the same as `other`.
  package func assign(_ other: ImageBytes) {
    if other.length < length { memset(base + other.length, 0, length - other.length) }
    memcpy(base, other.base, other.length)
    length = other.length
  }

  package func copy() -> ImageBytes {
    let copy = ImageBytes(capacity: capacity)
    copy.assign(self)
    return copy
  }

  package func isEqual(to other: ImageBytes) -> Bool {
    length == other.length && memcmp(base, other.base, length) == 0
  }

  package func be16(_ offset: Int) -> UInt16 {
    UInt16(bigEndian: base.loadUnaligned(fromByteOffset: offset, as: UInt16.self))
  }
  package func be32(_ offset: Int) -> UInt32 {
    UInt32(bigEndian: base.loadUnaligned(fromByteOffset: offset, as: UInt32.self))
  }
  package func be64(_ offset: Int) -> UInt64 {
    UInt64(bigEndian: base.loadUnaligned(fromByteOffset: offset, as: UInt64.self))
  }
  package func put16(_ value: UInt16, _ offset: Int) {
    withUnsafeBytes(of: value.bigEndian) { write($0, at: offset) }
  }
  package func put32(_ value: UInt32, _ offset: Int) {
    withUnsafeBytes(of: value.bigEndian) { write($0, at: offset) }
  }
  package func put64(_ value: UInt64, _ offset: Int) {
    withUnsafeBytes(of: value.bigEndian) { write($0, at: offset) }
  }
  package func put(_ bytes: [UInt8], _ offset: Int) {
    bytes.withUnsafeBytes { write($0, at: offset) }
  }

  private func write(_ bytes: UnsafeRawBufferPointer, at offset: Int) {
    if let start = bytes.baseAddress { write(start, count: bytes.count, at: offset) }
  }
}
