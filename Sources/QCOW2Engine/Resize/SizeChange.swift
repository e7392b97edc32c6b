/// What the size of a disk is to become.
///
/// A relative size counts from the size that the disk has when the change is made, not from the size that
/// it had when somebody asked for the change.
package struct SizeChange: Equatable, Sendable {
  /// The new size, in bytes.
  package enum Amount: Equatable, Sendable {
    case exactly(UInt64)
    /// So much more than now.
    case more(UInt64)
    /// So much less than now.
    case less(UInt64)
  }

  /// Whether the disk may become smaller.
  package enum Shrinking: Equatable, Sendable {
    case allowed
    /// The caller did not ask for it.
    case notAsked
    /// A device shows the disk: whoever uses it would lose what is cut off.
    case served
  }

  package var amount: Amount
  package var shrinking: Shrinking
  /// The change makes no sense unless the disk becomes larger.
  package var mustGrow: Bool

  /// A change.
  package init(_ amount: Amount, shrinking: Shrinking = .allowed, mustGrow: Bool = false) {
    self.amount = amount
    self.shrinking = shrinking
    self.mustGrow = mustGrow
  }

  /// The new size of a disk that has `current` bytes now.
  ///
  /// - Throws: ``ImageError/cannotResize(to:_:)`` for a size that is not above zero or too large for 64
  ///   bits, and for one that is not allowed.
  package func size(from current: UInt64) throws(ImageError) -> UInt64 {
    let size: UInt64
    switch amount {
    case .exactly(let bytes): size = bytes
    case .more(let bytes):
      let (sum, overflow) = current.addingReportingOverflow(bytes)
      guard !overflow else {
        throw .cannotResize(to: .max, .tooLarge(most: UInt64(Int64.max) & ~511))
      }
      size = sum
    case .less(let bytes):
      guard bytes < current else { throw .cannotResize(to: 0, .notPositive) }
      size = current - bytes
    }
    if mustGrow && size <= current {
      throw .cannotResize(to: size, .preallocates(from: current))
    }
    guard size < current else { return size }
    switch shrinking {
    case .allowed: return size
    case .notAsked: throw .cannotResize(to: size, .shrinks(from: current))
    case .served: throw .cannotResize(to: size, .shrinksServed(from: current))
    }
  }
}

/// A size before a change and after it, in bytes.
package struct SizeStep: Equatable, Sendable {
  package var old: UInt64
  package var new: UInt64

  /// A step.
  package init(old: UInt64, new: UInt64) {
    self.old = old
    self.new = new
  }
}
