import Glibc

extension UnsafeRawBufferPointer {
  /// Whether all bytes are zeros; true for no bytes.
  package var isAllZeros: Bool {
    guard let base = baseAddress else { return true }
    // Most data shows in its first words. The rest is compared with itself, 16 bytes further on.
    let head = Swift.min(count, 16)
    for index in 0..<head where unsafe self[index] != 0 { return false }
    return unsafe count <= 16 || memcmp(base, base + 16, count - 16) == 0
  }
}

extension DataBuffer {
  /// Whether all bytes are zeros; false for a registered buffer, whose bytes nobody here can see.
  package var isAllZeros: Bool {
    guard let memory = unsafe memory else { return false }
    return unsafe UnsafeRawBufferPointer(start: memory, count: count).isAllZeros
  }
}
