/// What the guest asks of the disk.
package enum BlockOperation: UInt8, Sendable {
  case read, write, flush, discard, writeZeroes
}

/// One request, from dispatch to completion.
package struct BlockRequest: Sendable {
  /// What is asked.
  package var operation: BlockOperation
  /// Forced unit access: a write or write-zeroes is durable before it completes.
  package var isFUA: Bool
  /// Write-zeroes must leave the range allocated (`UBLK_IO_F_NOUNMAP`).
  package var keepsAllocation: Bool
  /// The first guest byte; a multiple of 512.
  package var offset: GuestOffset
  /// The number of bytes; a multiple of 512; 0 for flush.
  package var length: UInt64
  /// The data of a read or write, `length` bytes; ``DataBuffer/none`` otherwise.
  package var data: DataBuffer

  @inlinable package init(
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
