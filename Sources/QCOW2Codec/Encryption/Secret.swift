import CCrypto
import Glibc

/// An error that can say that the kernel has no memory for a ``Secret``.
package protocol SecretMemoryFailure: Error {
  static func noSecretMemory(bytes: Int) -> Self
}

/// Bytes that must not leave the memory: a passphrase, a key, or what lies between them.
///
/// They have pages of their own, locked in memory where the limit on locked memory allows it, left
/// out of core dumps, and wiped when the last reference goes. They never change once the object is
/// made, and nothing prints them.
@safe
package final class Secret: @unchecked Sendable {  // why: the bytes never change after init
  private let base: UnsafeMutableRawPointer
  package let count: Int
  private let mappedLength: Int

  /// Makes a secret of `count` bytes, which are zero until `fill` writes them.
  ///
  /// - Parameters:
  ///   - count: At least 0, at most 16 MiB.
  ///   - fill: Writes the bytes.
  /// - Throws: What `fill` throws, the bytes being wiped;
  ///   ``SecretMemoryFailure/noSecretMemory(bytes:)``.
  package init<E: SecretMemoryFailure>(
    count: Int, _ fill: (UnsafeMutableRawBufferPointer) throws(E) -> Void
  ) throws(E) {
    precondition(count >= 0 && count <= 16 << 20)
    self.count = count
    let page = sysconf(Int32(_SC_PAGESIZE))
    mappedLength = max(1, (count + page - 1) / page) * page
    guard let memory = unsafe Self.map(mappedLength) else { throw .noSecretMemory(bytes: count) }
    unsafe base = memory
    // If this throws, the object is whole already and its deinit wipes.
    try unsafe fill(UnsafeMutableRawBufferPointer(start: base, count: count))
  }

  /// Copies `bytes`; the caller wipes its own.
  package convenience init<E: SecretMemoryFailure>(
    copying bytes: UnsafeRawBufferPointer, failingWith _: E.Type
  ) throws(E) {
    unsafe try self.init(count: bytes.count) { (target) throws(E) in
      unsafe target.copyMemory(from: bytes)
    }
  }

  deinit { unsafe Self.wipe(base, mappedLength) }

  /// Lends the bytes to `body`, which must not keep the pointer.
  package func withBytes<R: ~Copyable, E: Error>(
    _ body: (UnsafeRawBufferPointer) throws(E) -> R
  ) throws(E) -> R {
    defer { withExtendedLifetime(self) {} }
    return try unsafe body(UnsafeRawBufferPointer(start: base, count: count))
  }

  private static func map(_ length: Int) -> UnsafeMutableRawPointer? {
    let memory = unsafe mmap(
      nil, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    guard let memory = unsafe memory, unsafe memory != MAP_FAILED else { return nil }
    // Best effort: without the right to lock memory an image can still be made.
    _ = unsafe mlock(memory, length)
    _ = unsafe madvise(memory, length, MADV_DONTDUMP)
    return unsafe memory
  }

  private static func wipe(_ memory: UnsafeMutableRawPointer, _ length: Int) {
    unsafe OPENSSL_cleanse(memory, length)
    unsafe munmap(memory, length)
  }
}
