/// Where the data of a request or of a host transfer lies: plain memory, or a buffer registered
/// with the worker's ring (the request's own pages, under zero copy).
///
/// A value, not an owner: whoever made it keeps the memory alive until the transfer has completed.
public struct DataBuffer: @unchecked Sendable {  // why: an address only; the owner orders access
  /// The address of the first byte; for a registered buffer, the byte offset inside it.
  public let address: UInt
  /// The number of bytes.
  public let count: Int
  /// The slot in the ring's buffer table; -1 for plain memory.
  public let registeredIndex: Int32

  /// Describes plain memory.
  @inlinable public init(memory: UnsafeMutableRawPointer, count: Int) {
    self.address = UInt(bitPattern: memory)
    self.count = count
    self.registeredIndex = -1
  }

  /// Describes part of a registered buffer.
  @inlinable public init(registered index: Int32, offset: UInt, count: Int) {
    self.address = offset
    self.count = count
    self.registeredIndex = index
  }

  /// No data: flush, discard, write-zeroes.
  @inlinable public static var none: DataBuffer {
    DataBuffer(registered: -1, offset: 0, count: 0)
  }

  /// Whether the bytes can be reached through ``memory``.
  @inlinable public var isMemory: Bool { registeredIndex < 0 }

  /// The bytes, when this is plain memory; nil for registered and for empty buffers.
  @inlinable public var memory: UnsafeMutableRawPointer? {
    unsafe isMemory ? UnsafeMutableRawPointer(bitPattern: address) : nil
  }

  /// The part that starts at byte `offset` and has `count` bytes.
  @inlinable public func slice(_ offset: Int, _ count: Int) -> DataBuffer {
    assert(offset >= 0 && count >= 0 && offset + count <= self.count)
    if isMemory, let memory = unsafe memory {
      return unsafe DataBuffer(memory: memory + offset, count: count)
    }
    return DataBuffer(
      registered: registeredIndex, offset: address &+ UInt(bitPattern: offset), count: count)
  }
}
