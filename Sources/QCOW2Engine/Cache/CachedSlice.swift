import BlockCore
import QCOW2Format

/// A cached slice while its stripe's lock is held: the only way to change one.
///
/// The first change marks the slice dirty and then changes its bytes, in one lock hold. So no write-back
/// can fall between a mark and its change [ORD-4], and whenever the process dies, a slice whose bytes
/// differ from the host file's is marked.
@safe
struct CachedSlice {
  private let stripe: UnsafeMutablePointer<CacheStripe>
  private let slot: Int
  /// The slice's bytes, for looking at them.
  let bytes: UnsafeRawPointer
  private var isMarked = false

  /// - Parameters:
  ///   - stripe: locked, and outlives this.
  ///   - slot: one that has its bytes.
  @inline(__always) init(_ stripe: UnsafeMutablePointer<CacheStripe>, _ slot: Int) {
    unsafe self.stripe = unsafe stripe
    self.slot = slot
    unsafe bytes = unsafe UnsafeRawPointer(stripe.pointee.bytes(slot))
  }

  /// Marks the slice dirty, once.
  @inline(__always) mutating func mark() {
    if isMarked { return }
    isMarked = true
    unsafe stripe.pointee.markDirty(slot)
  }

  /// The slice's bytes, of which one store may change 8 that are aligned, or fewer.
  @inline(__always) private mutating func marked() -> UnsafeMutableRawPointer {
    mark()
    return unsafe UnsafeMutableRawPointer(mutating: bytes)
  }

  /// Changes 8 bytes at `offset`, a multiple of 8.
  @inline(__always) mutating func storeBE64(_ value: UInt64, _ offset: Int) {
    assert(offset & 7 == 0)
    unsafe marked().storeBE64(value, offset)
    stored()
  }

  /// Changes one refcount of a slice of a refcount block.
  @inline(__always) mutating func setRefcount(_ index: Int, order: Int, to value: UInt64) {
    setRefcounts(index..<(index &+ 1), order: order, to: value)
  }

  /// Changes refcounts of a slice of a refcount block, one after the other in any order.
  @inline(__always) mutating func setRefcounts(
    _ indexes: Range<Int>, order: Int, to value: UInt64
  ) {
    let bytes = unsafe marked()
    for index in indexes {
      unsafe RefcountWidth.set(bytes, order: order, index: index, value: value)
      unsafe stripe.pointee.noteStore()
    }
    MetadataMemory.orderStores()
  }

  /// Keeps one store from being made after the next ones: each leaves a state of its own.
  @inline(__always) private func stored() {
    MetadataMemory.orderStores()
    unsafe stripe.pointee.noteStore()
  }
}
