/// The 64 bits that travel with every submission and come back with its completion.
///
/// Bits 0–31: slot (a tag, or an index into ``OperationSlots``); bits 32–47: part of a plan;
/// bits 56–63: kind.
public struct UserData: Equatable, Sendable {
  /// What a completion is about.
  public enum Kind: UInt8, Sendable {
    /// Nobody waits for it.
    case ignored = 0
    /// The executor's eventfd was written to.
    case wake
    /// An asynchronous operation; the slot is its place in ``OperationSlots``.
    case operation
    /// A fetch of the ublk driver; the slot is the tag.
    case fetch
    /// One host transfer of a planned request; the slot is the tag.
    case transfer
    /// A multishot fetch of the ublk driver's batch mode.
    case batchFetch
    /// A batch of results for the ublk driver; the slot is the place in the batch's storage.
    case batchCommit
  }

  /// The value as the kernel keeps it.
  public let word: UInt64

  @inlinable public init(word: UInt64) { self.word = word }

  @inlinable public init(_ kind: Kind, slot: Int = 0, part: Int = 0) {
    assert(slot >= 0 && slot <= Int(UInt32.max) && part >= 0 && part <= Int(UInt16.max))
    word =
      UInt64(kind.rawValue) << 56 | UInt64(UInt16(truncatingIfNeeded: part)) << 32
      | UInt64(UInt32(truncatingIfNeeded: slot))
  }

  @inlinable public var kind: Kind {
    @inline(__always) get { Kind(rawValue: UInt8(word >> 56)) ?? .ignored }
  }
  @inlinable public var slot: Int { Int(UInt32(truncatingIfNeeded: word)) }
  @inlinable public var part: Int { Int(UInt16(truncatingIfNeeded: word >> 32)) }
}
