/// What the engine may know of a host file before it uses it.
public struct HostFileTraits: Sendable {
  /// A block device: no growth, no holes, and bytes beyond what was written are not known zero.
  public var isBlockDevice: Bool
  /// Transfers must start and end on multiples of this many bytes; a power of two, 1 for buffered.
  public var offsetAlignment: Int
  /// Opened for reading only.
  public var isReadOnly: Bool

  public init(isBlockDevice: Bool = false, offsetAlignment: Int = 1, isReadOnly: Bool = false) {
    self.isBlockDevice = isBlockDevice
    self.offsetAlignment = offsetAlignment
    self.isReadOnly = isReadOnly
  }
}

/// The engine's only way to storage: positioned, whole transfers and one kind of barrier.
///
/// Every call completes in full or throws: implementations finish short transfers, retry EINTR
/// and EAGAIN, and never report a partial count. Calls may be concurrent; overlapping ones have no
/// order among themselves. Calls may suspend and resume on the same worker.
public protocol HostFile: AnyObject, Sendable {
  /// Fixed facts, gathered at open.
  var traits: HostFileTraits { get }

  /// Fills `buffer` from `offset` on; bytes beyond the end of the file read as zeros.
  func read(into buffer: DataBuffer, at offset: HostOffset) async throws(Errno)

  /// Fills `buffer` with zeros; needed for registered buffers, which have no address here.
  func fillWithZeroes(_ buffer: DataBuffer) async throws(Errno)

  /// Writes all of `buffer` at `offset`; a regular file grows as needed.
  func write(from buffer: DataBuffer, at offset: HostOffset) async throws(Errno)

  /// Makes the range read as zeros, allocated or not, by whatever way the host file supports
  /// (fallocate ZERO_RANGE, PUNCH_HOLE, plain writes). A regular file grows as needed.
  func writeZeroes(at offset: HostOffset, length: UInt64) async throws(Errno)

  /// Gives the storage of the range back to the host. A hint: what the host file cannot do is no
  /// error, and afterwards the contents of the range are undefined.
  func punchHole(at offset: HostOffset, length: UInt64) async throws(Errno)

  /// The barrier: every write that completed before the call is durable when it returns
  /// (fdatasync).
  func sync() async throws(Errno)

  /// The current length in bytes; of a block device, its size.
  func length() async throws(Errno) -> UInt64

  /// Sets the length of a regular file.
  func setLength(_ length: UInt64) async throws(Errno)

  /// Makes a regular file reach to `length` at least, with zeros.
  ///
  /// Never shortens it, whatever extends the file at the same time.
  func extend(to length: UInt64) async throws(Errno)

  /// Makes a regular file reach over the range, which was never written, and asks the host for
  /// storage there, so that writes into it need not; it reads as zeros.
  ///
  /// The storage is a hint: a file without it holds the same, as long as there is room.
  func reserve(at offset: HostOffset, length: UInt64) async throws(Errno)

  /// Makes the range of a block device read as zeros, if the device can do it without their being
  /// transferred.
  ///
  /// - Returns: false if it cannot; the contents of the range are then undefined.
  func clear(at offset: HostOffset, length: UInt64) async -> Bool
}

extension HostFile {
  /// Without storage: for a host file that has none to give.
  public func reserve(at offset: HostOffset, length: UInt64) async throws(Errno) {
    try await extend(to: offset.bytes + length)
  }

  /// For a host file that has no such way.
  public func clear(at offset: HostOffset, length: UInt64) async -> Bool { false }

  /// Fills plain memory with zeros; a host file that serves registered buffers has its own.
  public func fillWithZeroes(_ buffer: DataBuffer) async throws(Errno) {
    guard let memory = unsafe buffer.memory else { throw .notSupported }
    unsafe memory.initializeMemory(as: UInt8.self, repeating: 0, count: buffer.count)
  }
}
