package import BlockCore

/// What the tools read: the bytes of an image, in a file or in memory.
///
/// Has no way to write, so `info` and `check` cannot change what they look at.
package protocol ImageBytes: AnyObject {
  /// The length in bytes; of a block device, its size.
  var length: UInt64 { get }

  /// Fills `buffer` from `offset` on; bytes past the end read as zeros.
  func read(into buffer: UnsafeMutableRawBufferPointer, at offset: HostOffset) throws(ToolError)
}

extension ImageBytes {
  /// Fills the first `count` bytes of `block`; bytes past the end of the image read as zeros.
  package func read(
    into block: IOBuffer, count: Int, at offset: HostOffset
  ) throws(ToolError) {
    precondition(count >= 0 && count <= block.count)
    let part = unsafe UnsafeMutableRawBufferPointer(start: block.base, count: count)
    try unsafe read(into: part, at: offset)
  }

  /// Reads into a fresh block of `count` bytes; the caller has bounded `count`.
  package func block(at offset: HostOffset, count: Int) throws(ToolError) -> IOBuffer {
    let block = IOBuffer(count: count)
    try read(into: block, count: count, at: offset)
    return block
  }
}

/// What `create` writes to.
package protocol WritableImageBytes: ImageBytes {
  /// A block device keeps its length and has old bytes where nothing was written.
  var isBlockDevice: Bool { get }

  /// Writes all of `buffer` or throws.
  func write(_ buffer: UnsafeRawBufferPointer, at offset: HostOffset) throws(ToolError)
  /// Sets the length of a regular file; what is added reads as zeros.
  func setLength(_ length: UInt64) throws(ToolError)
  /// Makes sure that the host has storage for the first `length` bytes.
  func allocate(_ length: UInt64) throws(ToolError)
  /// Makes everything written durable.
  func sync() throws(ToolError)
}

/// An image in memory, for tests and fuzzers.
package final class MemoryBytes: WritableImageBytes {
  package var bytes: [UInt8]
  package let isBlockDevice: Bool

  package init(_ bytes: [UInt8], isBlockDevice: Bool = false) {
    self.bytes = bytes
    self.isBlockDevice = isBlockDevice
  }

  package var length: UInt64 { UInt64(bytes.count) }

  package func read(
    into buffer: UnsafeMutableRawBufferPointer, at offset: HostOffset
  ) throws(ToolError) {
    unsafe buffer.initializeMemory(as: UInt8.self, repeating: 0)
    guard offset.bytes < length else { return }
    let start = Int(offset.bytes)
    let count = min(buffer.count, bytes.count - start)
    unsafe bytes.withUnsafeBytes { source in
      unsafe buffer.copyMemory(
        from: UnsafeRawBufferPointer(rebasing: source[start..<start + count]))
    }
  }

  package func write(_ buffer: UnsafeRawBufferPointer, at offset: HostOffset) throws(ToolError) {
    let (end, overflow) = offset.bytes.addingReportingOverflow(UInt64(buffer.count))
    guard !overflow, end <= UInt64(1 << 32) else {
      throw .host(.write(at: offset), errno: .fileTooBig)
    }
    if end > length {
      guard !isBlockDevice else { throw .host(.write(at: offset), errno: .noSpace) }
      bytes.append(contentsOf: repeatElement(0, count: Int(end - length)))
    }
    unsafe bytes.replaceSubrange(Int(offset.bytes)..<Int(end), with: buffer)
  }

  package func setLength(_ length: UInt64) throws(ToolError) {
    guard length <= UInt64(1 << 32) else {
      throw .host(.setLength(length), errno: .fileTooBig)
    }
    if length < self.length {
      bytes.removeLast(bytes.count - Int(length))
    } else {
      bytes.append(contentsOf: repeatElement(0, count: Int(length - self.length)))
    }
  }

  package func allocate(_ length: UInt64) throws(ToolError) {
    if length > self.length { try setLength(length) }
  }

  package func sync() throws(ToolError) {}
}
