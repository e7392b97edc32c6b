package import BlockCore
package import CUblk

/// A request as the driver describes it, copied out of the memory that it shares.
package struct IODescriptor: Sendable {
  package let operation: UInt8
  package let flags: UInt32
  package let sectors: UInt32
  package let startSector: UInt64

  package init(_ raw: ublk_io_descriptor) {
    operation = UInt8(truncatingIfNeeded: raw.op_flags)
    flags = raw.op_flags
    sectors = raw.nr_sectors
    startSector = raw.start_sector
  }

  /// The automatic registration of the request's pages has failed.
  package var lacksRegisteredBuffer: Bool { flags & UInt32(UBLK_IO_F_NEED_REG_BUF) != 0 }

  /// The request as the target sees it, without its data.
  ///
  /// - Parameters:
  ///   - size: The size of the device in bytes.
  ///   - maxIOBytes: The most bytes of a read or write.
  /// - Returns: A request whose range is wholly on the device.
  /// - Throws: EINVAL for an operation that the driver should not send, EIO for a range that is
  ///   not wholly on the device.
  @inlinable @inline(__always) package func request(
    size: UInt64, maxIOBytes: Int
  ) throws(Errno) -> BlockRequest {
    let length = UInt64(sectors) * 512
    let kind: BlockOperation
    switch Int(operation) {
    case UBLK_IO_OP_READ: kind = .read
    case UBLK_IO_OP_WRITE: kind = .write
    case UBLK_IO_OP_FLUSH: return BlockRequest(.flush)
    case UBLK_IO_OP_DISCARD: kind = .discard
    case UBLK_IO_OP_WRITE_ZEROES: kind = .writeZeroes
    default: throw .invalid
    }
    let (start, overflow) = startSector.multipliedReportingOverflow(by: 512)
    guard !overflow, length > 0, start <= size, length <= size - start else { throw .io }
    if kind == .read || kind == .write, length > UInt64(maxIOBytes) { throw .invalid }
    return BlockRequest(
      kind, offset: GuestOffset(start), length: length,
      isFUA: flags & UInt32(UBLK_IO_F_FUA) != 0,
      keepsAllocation: flags & UInt32(UBLK_IO_F_NOUNMAP) != 0)
  }
}
