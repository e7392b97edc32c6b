import BlockCore
import QCOW2Format

/// Tables and refcount blocks in memory, each access checked: a position outside is a bug of ours.
///
/// A check may read gigabytes of them, so numbers are loaded whole, not byte by byte.
extension IOBuffer {
  /// The big-endian number at `offset`.
  func be64(_ offset: Int) -> UInt64 {
    precondition(offset >= 0 && offset &+ 8 <= count)
    return withExtendedLifetime(self) { unsafe base.be64(offset) }
  }

  /// Stores a big-endian number at `offset`.
  func storeBE64(_ value: UInt64, _ offset: Int) {
    precondition(offset >= 0 && offset &+ 8 <= count)
    withExtendedLifetime(self) { unsafe base.storeBE64(value, offset) }
  }

  /// The refcount at `index` of the refcount block, or part of one, that this is.
  func refcount(_ index: Int, order: Int) -> UInt64 {
    requireRefcount(index, order)
    return withExtendedLifetime(self) { unsafe RefcountWidth.get(base, order: order, index: index) }
  }

  /// Stores the refcount at `index`; it must fit the width.
  func setRefcount(_ index: Int, order: Int, to value: UInt64) {
    requireRefcount(index, order)
    withExtendedLifetime(self) {
      unsafe RefcountWidth.set(base, order: order, index: index, value: value)
    }
  }

  private func requireRefcount(_ index: Int, _ order: Int) {
    precondition(index >= 0 && (index << order) >> 3 < count)
  }
}
