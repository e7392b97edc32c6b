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

/// The number of a cluster of the image file, counted from 0, where the header is: a host offset
/// divided by the cluster size.
///
/// Offsets are below 2^56 and clusters have at least 2^9 bytes, so numbers are below 2^47 and no sum
/// of two wraps. `ClusterGeometry` knows the cluster size, and so converts from and to ``HostOffset``.
public struct HostCluster: Strideable, Hashable, Sendable {
  public let number: UInt64

  @inlinable public init(_ number: UInt64) { self.number = number }

  /// Above all clusters that there can be; nothing is added to it.
  @inlinable public static var max: Self { Self(.max) }

  @inlinable public static func < (lhs: Self, rhs: Self) -> Bool { lhs.number < rhs.number }

  /// The cluster `count` further on.
  @inlinable public static func + (lhs: Self, count: UInt64) -> Self {
    Self(lhs.number &+ count)
  }
  @inlinable public static func += (lhs: inout Self, count: UInt64) { lhs = lhs + count }

  /// How many clusters there are from `start`, which is not above `end`, up to it.
  @inlinable public static func - (end: Self, start: Self) -> UInt64 {
    end.number &- start.number
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
