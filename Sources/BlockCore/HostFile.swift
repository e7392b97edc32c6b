/// What the engine may know of a host file before it uses it.
public struct HostFileTraits: Sendable {
  /// A block device: no growth, no holes, and bytes beyond what was written are not known zero.
  public var isBlockDevice: Bool
  /// Writes must start and end on multiples of this many bytes, and reads that do not are copied; a
  /// power of two, 1 for buffered.
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
  /// error, and afterwards the contents of the range are undefined; in a regular file they are zeros
  /// or, where nothing could be done, what there was.
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
  /// - Returns: what the host gave. After ``Reservation/short`` the host has kept nothing: a smaller
  ///   range may fit.
  func reserve(at offset: HostOffset, length: UInt64) async throws(Errno) -> Reservation

  /// Makes the range read as zeros and gives it the host's storage, so that a later write into it does
  /// not fail for want of space. A regular file grows as needed.
  func allocateZeroes(at offset: HostOffset, length: UInt64) async throws(Errno)

  /// Gives the holes of the range the host's storage. The range reads as before, and the file keeps its
  /// length.
  ///
  /// - Returns: false if the host file has no such way; ``fillHoles(at:length:)`` is the slow one.
  func allocateHoles(at offset: HostOffset, length: UInt64) async throws(Errno) -> Bool

  /// The same by writing zeros into the holes, or over all zeros where the host does not tell holes; no
  /// other write may touch the range meanwhile.
  func fillHoles(at offset: HostOffset, length: UInt64) async throws(Errno)

  /// Whether the bytes from `offset` on are in a hole, and how many after them are alike: 1 to `length`.
  ///
  /// A hole reads as zeros, and so does what lies beyond the end of the file. Not for the request path:
  /// it asks the host each time, and may block.
  func extent(at offset: HostOffset, length: UInt64) async -> HostExtent

  /// The bytes of storage that the host has given to the file; nil if it cannot tell.
  func storedBytes() async -> UInt64?

  /// A place, `offset` or later, behind which nothing was ever written: all of that is a hole, or storage
  /// without data, and reads as zeros. Nil if the host file cannot tell.
  func endOfData(from offset: HostOffset) async -> HostOffset?

  /// Makes the range of a block device read as zeros, if the device can do it without their being
  /// transferred.
  ///
  /// - Returns: false if it cannot; the contents of the range are then undefined.
  func clear(at offset: HostOffset, length: UInt64) async -> Bool
}

/// A range of a host file that is all alike.
public struct HostExtent: Equatable, Sendable {
  /// In bytes, at least 1.
  public var length: UInt64
  /// No storage: reads as zeros.
  public var isHole: Bool

  /// A range of so many bytes.
  public init(length: UInt64, isHole: Bool) {
    self.length = length
    self.isHole = isHole
  }
}

/// What a host gave for a reservation.
public enum Reservation: Sendable {
  /// Storage: writes into the range need none.
  case stored
  /// The file reaches over the range; its storage comes with the writes.
  case extended
  /// The host has no room for so much and keeps none of it; some file systems leave the file longer.
  case short
}

extension HostFile {
  /// Without storage: for a host file that has none to give.
  public func reserve(at offset: HostOffset, length: UInt64) async throws(Errno) -> Reservation {
    try await extend(to: offset.bytes + length)
    return .extended
  }

  /// For a host file where zeros have storage.
  public func allocateZeroes(at offset: HostOffset, length: UInt64) async throws(Errno) {
    try await writeZeroes(at: offset, length: length)
  }

  /// For a host file without holes.
  public func allocateHoles(at offset: HostOffset, length: UInt64) async throws(Errno) -> Bool {
    true
  }

  /// For a host file without holes.
  public func fillHoles(at offset: HostOffset, length: UInt64) async throws(Errno) {}

  /// For a host file that cannot tell: all is data.
  public func extent(at offset: HostOffset, length: UInt64) async -> HostExtent {
    HostExtent(length: length, isHole: false)
  }

  /// For a host file that cannot tell.
  public func storedBytes() async -> UInt64? { nil }

  /// For a host file that cannot tell.
  public func endOfData(from offset: HostOffset) async -> HostOffset? { nil }

  /// For a host file that has no such way.
  public func clear(at offset: HostOffset, length: UInt64) async -> Bool { false }

  /// Fills plain memory with zeros; a host file that serves registered buffers has its own.
  public func fillWithZeroes(_ buffer: DataBuffer) async throws(Errno) {
    guard let memory = unsafe buffer.memory else { throw .notSupported }
    unsafe memory.initializeMemory(as: UInt8.self, repeating: 0, count: buffer.count)
  }
}
