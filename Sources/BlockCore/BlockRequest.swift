/// What the guest asks of the disk.
public enum BlockOperation: UInt8, Sendable {
  case read, write, flush, discard, writeZeroes
}

/// One request, from dispatch to completion.
public struct BlockRequest: Sendable {
  /// What is asked.
  public var operation: BlockOperation
  /// Forced unit access: a write or write-zeroes is durable before it completes.
  public var isFUA: Bool
  /// Write-zeroes must leave the range allocated (`UBLK_IO_F_NOUNMAP`).
  public var keepsAllocation: Bool
  /// A write of whole clusters is stored compressed, where the format can and it saves space.
  public var compresses = false
  /// The first guest byte; a multiple of 512.
  public var offset: GuestOffset
  /// The number of bytes; a multiple of 512; 0 for flush.
  public var length: UInt64
  /// The data of a read or write, `length` bytes; ``DataBuffer/none`` otherwise.
  public var data: DataBuffer

  /// The operation of a request with no flag set; nil for others.
  ///
  /// Costs one load, which the fields by themselves do not.
  @inlinable public var plainOperation: BlockOperation? {
    @inline(__always) get {
      let word = unsafe withUnsafeBytes(of: self) { unsafe $0.loadUnaligned(as: UInt32.self) }
      let number = UInt32(littleEndian: word)
      return number < 256 ? BlockOperation(rawValue: UInt8(truncatingIfNeeded: number)) : nil
    }
  }

  @inlinable public init(
    _ operation: BlockOperation, offset: GuestOffset = GuestOffset(0), length: UInt64 = 0,
    data: DataBuffer = .none, isFUA: Bool = false, keepsAllocation: Bool = false
  ) {
    self.operation = operation
    self.isFUA = isFUA
    self.keepsAllocation = keepsAllocation
    self.offset = offset
    self.length = length
    self.data = data
  }
}
