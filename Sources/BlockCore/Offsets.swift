/// A byte position in the virtual disk that the guest sees.
///
/// There is no arithmetic with, and no conversion to, ``HostOffset``: the only way from one to
/// the other is a mapping.
public struct GuestOffset: Comparable, Hashable, Sendable {
  /// The position in bytes from the start of the virtual disk.
  public let bytes: UInt64

  @inlinable public init(_ bytes: UInt64) { self.bytes = bytes }

  @inlinable public static func < (lhs: Self, rhs: Self) -> Bool { lhs.bytes < rhs.bytes }

  /// The offset `count` bytes further on; wraps at 2^64, which no checked request reaches.
  @inlinable public static func + (lhs: Self, count: UInt64) -> Self {
    Self(lhs.bytes &+ count)
  }
}

/// The number of a cluster of the virtual disk: a guest offset divided by the cluster size.
///
/// No number of a host cluster can stand where this is asked for, nor this where that is.
public struct GuestCluster: Strideable, Hashable, Sendable {
  public let number: UInt64

  @inlinable public init(_ number: UInt64) { self.number = number }

  @inlinable public static func < (lhs: Self, rhs: Self) -> Bool { lhs.number < rhs.number }

  /// The cluster `count` further on.
  @inlinable public static func + (lhs: Self, count: UInt64) -> Self {
    Self(lhs.number &+ count)
  }

  @inlinable public func distance(to other: Self) -> Int {
    Int(truncatingIfNeeded: other.number &- number)
  }
  @inlinable public func advanced(by count: Int) -> Self {
    Self(number &+ UInt64(truncatingIfNeeded: count))
  }
}

/// A byte position in a host file: the image, its data file or one of its backing files.
///
/// The qcow2 format keeps these below 2^56.
public struct HostOffset: Comparable, Hashable, Sendable {
  /// The position in bytes from the start of the host file.
  public let bytes: UInt64

  @inlinable public init(_ bytes: UInt64) { self.bytes = bytes }

  @inlinable public static func < (lhs: Self, rhs: Self) -> Bool { lhs.bytes < rhs.bytes }

  /// The offset `count` bytes further on; wraps at 2^64, which no validated entry reaches.
  @inlinable public static func + (lhs: Self, count: UInt64) -> Self {
    Self(lhs.bytes &+ count)
  }
}
