import Glibc

/// Page-aligned memory with an owner, for transfers that must satisfy O_DIRECT.
///
/// The bytes are zero at first, so nothing that was not filled can reach a guest or a disk; but for
/// ``init(unfilled:)``.
@safe
public final class IOBuffer: @unchecked Sendable {  // why: immutable address; users order access
  /// The first byte; aligned to 4096.
  public let base: UnsafeMutableRawPointer
  /// The number of bytes.
  public let count: Int

  public init(count: Int) {
    let rounded = max(count, 1)
    unsafe base = .allocate(byteCount: rounded, alignment: 4096)
    unsafe memset(base, 0, rounded)
    self.count = count
  }

  /// Memory with any contents, untouched as yet: for bytes that never go further as they are.
  ///
  /// - Parameter count: The number of bytes.
  public init(unfilled count: Int) {
    unsafe base = .allocate(byteCount: max(count, 1), alignment: 4096)
    self.count = count
  }

  deinit { unsafe base.deallocate() }

  /// The whole buffer, as the target or source of a transfer.
  public var data: DataBuffer { unsafe DataBuffer(memory: base, count: count) }
}
