public import BlockCore

/// One header extension as found: its type and where its data lies.
///
/// Source: qcow2 specification, "Header extensions".
public struct HeaderExtension: Equatable, Sendable {
  /// The type number, known or not.
  public struct Kind: RawRepresentable, Hashable, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    public static let end = Self(rawValue: 0)
    public static let backingFormat = Self(rawValue: 0xe279_2aca)
    public static let featureNames = Self(rawValue: 0x6803_f857)
    public static let bitmaps = Self(rawValue: 0x2385_2875)
    public static let encryptionHeader = Self(rawValue: 0x0537_be77)
    public static let dataFileName = Self(rawValue: 0x4441_5441)
  }

  public let kind: Kind
  /// The data's first byte, counted from the start of the file.
  public let offset: Int
  /// The number of bytes of data, without padding.
  public let length: Int
}

extension HeaderExtension {
  /// Lists the extensions between the header and `end`, in order, without the end marker.
  ///
  /// - Parameters:
  ///   - cluster: The start of the file; the whole first cluster, or up to `end`.
  ///   - start: The length of the header.
  ///   - end: Where the area ends: the backing file name, or the end of the first cluster.
  /// - Returns: The extensions, known and unknown.
  /// - Throws: ``FormatError/badField(name:found:allowed:)`` if an extension does not fit.
  public static func list(
    in cluster: UnsafeRawBufferPointer, from start: Int, to end: Int
  ) throws(FormatError) -> [HeaderExtension] {
    guard let base = cluster.baseAddress else { return [] }
    let end = min(end, cluster.count)
    var found: [HeaderExtension] = []
    var position = start
    while position < end {
      guard end - position >= 8 else { throw tooLong(UInt64(8), end - position) }
      let kind = unsafe Kind(rawValue: base.be32(position))
      let length = unsafe base.be32(position + 4)
      position += 8
      guard UInt64(length) <= UInt64(end - position) else {
        throw tooLong(UInt64(length), end - position)
      }
      if kind == .end { break }
      found.append(HeaderExtension(kind: kind, offset: position, length: Int(length)))
      position += (Int(length) + 7) & ~7
    }
    return found
  }

  private static func tooLong(_ found: UInt64, _ space: Int) -> FormatError {
    .badField(
      name: "length of a header extension", found: found, allowed: "at most \(space)")
  }
}

/// The full disk encryption header pointer.
///
/// Source: qcow2 specification, "Full disk encryption header pointer".
public struct EncryptionHeaderPointer: Equatable, Sendable {
  public static let length = 16
  public let offset: HostOffset
  /// In bytes; the clusters that hold them all belong to the encryption header.
  public let length: UInt64

  public init(parsing bytes: [UInt8]) throws(FormatError) {
    guard bytes.count == Self.length else {
      throw .badField(
        name: "length of the encryption header extension", found: UInt64(bytes.count),
        allowed: "\(Self.length)")
    }
    offset = HostOffset(bytes.be64(0))
    length = bytes.be64(8)
  }
}
