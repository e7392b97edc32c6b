/// One 64-byte submission queue entry, field by field as the kernel lays it out.
public struct SubmissionEntry: BitwiseCopyable, Sendable {
  public var opcode: UInt8
  public var flags: UInt8 = 0
  public var priority: UInt16 = 0
  public var fd: Int32
  public var offset: UInt64 = 0
  public var address: UInt64 = 0
  public var length: UInt32 = 0
  public var operationFlags: UInt32 = 0
  public var userData: UInt64 = 0
  public var bufferIndex: UInt16 = 0
  public var personality: UInt16 = 0
  public var fileIndex: UInt32 = 0
  public var command: (UInt64, UInt64) = (0, 0)

  @inlinable public init(_ opcode: Opcode, file: RingFile) {
    self.opcode = opcode.rawValue
    switch file {
    case .descriptor(let fd): self.fd = fd
    case .registered(let slot):
      self.fd = slot
      self.flags = SubmissionFlags.fixedFile
    }
  }
}

/// A file as an entry names it: a descriptor, or a slot in the ring's table of registered files.
public enum RingFile: Sendable {
  case descriptor(Int32)
  case registered(Int32)
}

/// The io_uring operations in use; numbers of the kernel's ABI.
public enum Opcode: UInt8, Sendable {
  case nop = 0
  case fsync = 3
  case readFixed = 4
  case writeFixed = 5
  case timeout = 11
  case timeoutRemove = 12
  case fallocate = 17
  case read = 22
  case write = 23
  case uringCommand = 46
  case ftruncate = 55
}

/// Bits of ``SubmissionEntry/flags``.
public enum SubmissionFlags {
  public static let fixedFile: UInt8 = 1 << 0
  public static let bufferSelect: UInt8 = 1 << 5
}

/// What a completion says besides its result.
public struct CompletionFlags: Sendable {
  public let raw: UInt32
  @inlinable public init(raw: UInt32) { self.raw = raw }

  /// The operation is still there and will complete again.
  @inlinable public var hasMore: Bool { raw & (1 << 1) != 0 }
  /// The provided buffer that was used; nil for none.
  @inlinable public var buffer: Int? { raw & 1 != 0 ? Int(raw >> 16) : nil }
}
