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

  /// For sizes that no image or user chooses freely: without memory the program ends.
  public convenience init(count: Int) {
    guard let base = unsafe Self.allocate(count) else { Self.fail(count) }
    unsafe self.init(base, count)
  }

  /// Nil if there is no memory for it.
  public convenience init?(ifPossible count: Int) {
    guard let base = unsafe Self.allocate(count) else { return nil }
    unsafe self.init(base, count)
  }

  private init(_ base: UnsafeMutableRawPointer, _ count: Int) {
    unsafe self.base = unsafe base
    self.count = count
  }

  /// Memory with any contents, untouched as yet: for bytes that never go further as they are.
  ///
  /// - Parameter count: The number of bytes.
  public convenience init(unfilled count: Int) {
    guard let base = unsafe Self.allocateUnfilled(count) else { Self.fail(count) }
    unsafe self.init(base, count)
  }

  /// As Swift's own allocations do: sizes that come here are bounded, most of them by a cluster or two.
  private static func fail(_ count: Int) -> Never { fatalError("no memory for \(count) bytes") }

  private static func allocateUnfilled(_ count: Int) -> UnsafeMutableRawPointer? {
    var memory: UnsafeMutableRawPointer?
    return unsafe posix_memalign(&memory, 4096, max(count, 1)) == 0 ? memory : nil
  }

  private static func allocate(_ count: Int) -> UnsafeMutableRawPointer? {
    guard let memory = unsafe allocateUnfilled(count) else { return nil }
    return unsafe memset(memory, 0, max(count, 1))
  }

  deinit { unsafe free(base) }

  /// The whole buffer, as the target or source of a transfer.
  public var data: DataBuffer { unsafe DataBuffer(memory: base, count: count) }

  /// Calls `body` with the bytes, for what reads them with bounds checks.
  public func withBytes<Value, Failure: Error>(
    _ body: (Span<UInt8>) throws(Failure) -> Value
  ) throws(Failure) -> Value {
    defer { withExtendedLifetime(self) {} }
    let bytes = unsafe UnsafeBufferPointer(
      start: base.assumingMemoryBound(to: UInt8.self), count: count)
    return try body(unsafe bytes.span)
  }

  /// Calls `body` with the bytes, for what changes them with bounds checks.
  public func withMutableBytes<Value, Failure: Error>(
    _ body: (inout MutableSpan<UInt8>) throws(Failure) -> Value
  ) throws(Failure) -> Value {
    defer { withExtendedLifetime(self) {} }
    let bytes = unsafe UnsafeMutableBufferPointer(
      start: base.assumingMemoryBound(to: UInt8.self), count: count)
    var span = unsafe bytes.mutableSpan
    return try body(&span)
  }
}

extension IOBuffer {
  /// Some bytes, then zeros up to `count` bytes.
  public convenience init(starting bytes: [UInt8], count: Int) {
    precondition(bytes.count <= count)
    self.init(count: count)
    unsafe bytes.withUnsafeBytes { source in
      unsafe UnsafeMutableRawBufferPointer(start: base, count: count).copyMemory(from: source)
    }
  }
}
