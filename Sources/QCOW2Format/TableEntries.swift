public import BlockCore

/// The bits that entries of several tables share.
public enum EntryBits {
  /// Bits 9 to 55: the offset field of L1, L2 and bitmap table entries.
  @inlinable public static var offset: UInt64 { 0x00ff_ffff_ffff_fe00 }
  /// Bits 56 to 63, above the offset field.
  @inlinable public static var aboveOffset: UInt64 { 0xff << 56 }
  /// Bit 63: the refcount of what the entry points at is exactly one.
  @inlinable public static var copied: UInt64 { 1 << 63 }
  /// Bit 62 of an L2 entry.
  @inlinable public static var compressed: UInt64 { 1 << 62 }
  /// Bit 0 of a standard cluster descriptor, version 3.
  @inlinable public static var zero: UInt64 { 1 }
  /// Bits 0 to 8 of a refcount table entry, below its offset field.
  @inlinable public static var refcountReserved: UInt64 { 0x1ff }
}

/// An entry of the L1 table.
///
/// Source: qcow2 specification, "L1 table entry".
public struct L1Entry: Equatable, Sendable {
  public let raw: UInt64
  @inlinable public init(raw: UInt64) { self.raw = raw }
  /// An entry for an L2 table; `copied` if its refcount is exactly one.
  @inlinable public init(l2Table: HostOffset, copied: Bool) {
    raw = l2Table.bytes | (copied ? EntryBits.copied : 0)
  }
  /// Nothing allocated below this entry.
  @inlinable public static var unallocated: L1Entry { L1Entry(raw: 0) }
  /// Where the L2 table starts; nil if there is none.
  @inlinable public var l2Table: HostOffset? {
    raw & EntryBits.offset == 0 ? nil : HostOffset(raw & EntryBits.offset)
  }
  /// The L2 table may be changed in place.
  @inlinable public var isCopied: Bool { raw & EntryBits.copied != 0 }
  /// The same entry with COPIED as it should be.
  public func copied(_ isCopied: Bool) -> L1Entry {
    L1Entry(raw: isCopied ? raw | EntryBits.copied : raw & ~EntryBits.copied)
  }

  /// All reserved bits below the offset: how an entry is marked, in memory only, that cannot be used
  /// since the file is too short.
  private static let unusableMark: UInt64 = 0x1fe

  /// The same entry, marked; whoever looks at reserved bits will not use it.
  public var unusable: L1Entry { L1Entry(raw: raw | Self.unusableMark) }
  /// The entry as it was before ``unusable``; nil if it has no such mark.
  public var beforeUnusable: L1Entry? {
    raw & Self.unusableMark == Self.unusableMark ? L1Entry(raw: raw & ~Self.unusableMark) : nil
  }
}

/// An entry of an L2 table without subclusters, or the first half of an extended one.
///
/// Source: qcow2 specification, "L2 table entry", "Standard Cluster Descriptor".
public struct L2Entry: Equatable, Sendable {
  public let raw: UInt64
  @inlinable public init(raw: UInt64) { self.raw = raw }
  /// A plain data cluster; `copied` if its refcount is exactly one.
  @inlinable public init(data: HostOffset, copied: Bool) {
    raw = data.bytes | (copied ? EntryBits.copied : 0)
  }
  /// Neither allocated nor zero: what the backing file has, or zeros.
  @inlinable public static var unallocated: L2Entry { L2Entry(raw: 0) }
  /// Reads as zeros, no cluster allocated.
  ///
  /// Version 3 only.
  @inlinable public static var zero: L2Entry { L2Entry(raw: EntryBits.zero) }

  /// The four shapes of an entry, the only ones there are.
  public enum Kind: UInt8, Sendable {
    case unallocated
    /// Reads as zeros; a cluster may be allocated behind it.
    case zero
    case data
    case compressed
  }

  /// The shape.
  ///
  /// Version 2 has no zero flag: there bit 0 is reserved and ignored here.
  @inlinable public func kind(hasZeroFlag: Bool) -> Kind {
    if raw & EntryBits.compressed != 0 { return .compressed }
    if hasZeroFlag && raw & EntryBits.zero != 0 { return .zero }
    return raw & EntryBits.offset == 0 ? .unallocated : .data
  }
  /// The cluster of a standard descriptor; nil when the field is zero.
  @inlinable public var hostCluster: HostOffset? {
    raw & EntryBits.offset == 0 ? nil : HostOffset(raw & EntryBits.offset)
  }
  /// The refcount of the cluster is exactly one: it may be written in place.
  @inlinable public var isCopied: Bool { raw & EntryBits.copied != 0 }
  /// The same entry, reading as zeros with its cluster kept.
  @inlinable public var zeroed: L2Entry { L2Entry(raw: raw | EntryBits.zero) }
  /// The same entry with COPIED as it should be.
  public func copied(_ isCopied: Bool) -> L2Entry {
    L2Entry(raw: isCopied ? raw | EntryBits.copied : raw & ~EntryBits.copied)
  }
}

/// An entry of the refcount table.
///
/// Source: qcow2 specification, "Refcount table entry".
public struct RefcountTableEntry: Equatable, Sendable {
  public let raw: UInt64
  @inlinable public init(raw: UInt64) { self.raw = raw }
  @inlinable public init(block: HostOffset) { raw = block.bytes }
  /// Where the refcount block starts; nil if all its refcounts are zero.
  @inlinable public var block: HostOffset? {
    let place = raw & ~EntryBits.refcountReserved
    return place == 0 ? nil : HostOffset(place)
  }
}
