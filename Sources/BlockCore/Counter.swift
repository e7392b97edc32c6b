public import Synchronization

/// A counter with one writer at a time, which anyone may read at any moment.
public struct Counter: ~Copyable, Sendable {
  @usableFromInline let value = Atomic<UInt64>(0)

  @inlinable public init() {}

  /// Adds by plain loads and stores, since nobody else writes; wraps at 2^64.
  @inlinable @inline(__always) public func add(_ amount: UInt64 = 1) {
    value.store(value.load(ordering: .relaxed) &+ amount, ordering: .relaxed)
  }

  /// Becomes `candidate` if that is more.
  @inlinable @inline(__always) public func raise(to candidate: UInt64) {
    if candidate > value.load(ordering: .relaxed) { value.store(candidate, ordering: .relaxed) }
  }

  @inlinable public var current: UInt64 { value.load(ordering: .relaxed) }
}
