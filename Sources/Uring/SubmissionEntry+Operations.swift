public import BlockCore

/// The entries, one function for each operation. `userData` is left to the caller.
extension SubmissionEntry {
  /// Does nothing and completes with 0.
  public static var nop: SubmissionEntry { SubmissionEntry(.nop, file: .descriptor(-1)) }

  /// Reads into plain memory or a registered buffer; `data.count` must fit in 31 bits.
  @inlinable public static func read(
    _ file: RingFile, into data: DataBuffer, at offset: UInt64
  ) -> SubmissionEntry {
    transfer(data.isMemory ? .read : .readFixed, file, data, offset)
  }

  /// Writes from plain memory or a registered buffer; `data.count` must fit in 31 bits.
  @inlinable public static func write(
    _ file: RingFile, from data: DataBuffer, at offset: UInt64
  ) -> SubmissionEntry {
    transfer(data.isMemory ? .write : .writeFixed, file, data, offset)
  }

  @inlinable static func transfer(
    _ opcode: Opcode, _ file: RingFile, _ data: DataBuffer, _ offset: UInt64
  ) -> SubmissionEntry {
    assert(data.count <= Int32.max, "a transfer is longer than the kernel makes")
    var entry = SubmissionEntry(opcode, file: file)
    entry.offset = offset
    entry.address = UInt64(data.address)
    entry.length = UInt32(truncatingIfNeeded: data.count)
    if !data.isMemory { entry.bufferIndex = UInt16(truncatingIfNeeded: data.registeredIndex) }
    return entry
  }

  /// Waits until the data of the file, and the metadata needed to find it, are durable.
  public static func dataSync(_ file: RingFile) -> SubmissionEntry {
    var entry = SubmissionEntry(.fsync, file: file)
    entry.operationFlags = 1  // IORING_FSYNC_DATASYNC
    return entry
  }

  /// fallocate(2) with `mode`.
  public static func allocate(
    _ file: RingFile, mode: Int32, at offset: UInt64, length: UInt64
  ) -> SubmissionEntry {
    var entry = SubmissionEntry(.fallocate, file: file)
    entry.offset = offset
    entry.address = length
    entry.length = UInt32(bitPattern: mode)
    return entry
  }

  /// ftruncate(2); Linux 6.9 and later.
  public static func truncate(_ file: RingFile, to length: UInt64) -> SubmissionEntry {
    var entry = SubmissionEntry(.ftruncate, file: file)
    entry.offset = length
    return entry
  }

  /// Completes with -ETIME when the time at `timespec` has passed.
  ///
  /// `timespec` is the kernel's (two 64-bit words) and stays until submission.
  public static func timeout(after timespec: UnsafeRawPointer) -> SubmissionEntry {
    var entry = SubmissionEntry(.timeout, file: .descriptor(-1))
    entry.address = UInt64(UInt(bitPattern: timespec))
    entry.length = 1
    return entry
  }

  /// Ends a timeout early; that one completes with -ECANCELED.
  public static func removeTimeout(_ target: UserData) -> SubmissionEntry {
    var entry = SubmissionEntry(.timeoutRemove, file: .descriptor(-1))
    entry.address = target.word
    return entry
  }

  /// A command to a driver, with 16 bytes of payload.
  ///
  /// `address` is the `addr` field of the entry, whose meaning is the driver's.
  @inlinable public static func command(
    _ opcode: UInt32, _ file: RingFile, payload: (UInt64, UInt64), address: UInt64 = 0
  ) -> SubmissionEntry {
    var entry = SubmissionEntry(.uringCommand, file: file)
    entry.offset = UInt64(opcode)
    entry.address = address
    entry.command = payload
    return entry
  }

  /// A command to a driver that completes again and again, each time with a buffer of `group`.
  public static func multishotCommand(
    _ opcode: UInt32, _ file: RingFile, payload: (UInt64, UInt64), group: UInt16
  ) -> SubmissionEntry {
    var entry = command(opcode, file, payload: payload)
    entry.flags |= SubmissionFlags.bufferSelect
    entry.operationFlags = 1 << 1  // IORING_URING_CMD_MULTISHOT
    entry.bufferIndex = group
    return entry
  }
}
