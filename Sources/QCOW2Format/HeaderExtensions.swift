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

  /// Where the data lies, counted from the start of the file.
  public var bytes: Range<Int> { offset..<(offset + length) }
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
    in cluster: Span<UInt8>, from start: Int, to end: Int
  ) throws(FormatError) -> [HeaderExtension] {
    let end = min(end, cluster.count)
    var found: [HeaderExtension] = []
    var position = start
    while position < end {
      guard end - position >= 8 else { throw tooLong(UInt64(8), end - position) }
      let kind = Kind(rawValue: cluster.be32(position))
      let length = cluster.be32(position + 4)
      position += 8
      guard UInt64(length) <= UInt64(end - position) else {
        throw tooLong(UInt64(length), end - position)
      }
      if kind == .end { break }
      found.append(HeaderExtension(kind: kind, offset: position, length: Int(length)))
      position += paddedLength(Int(length))
    }
    return found
  }

  /// The bytes of an extension as it stands in an image, padding included.
  public static func encode(_ kind: Kind, _ data: [UInt8] = []) -> [UInt8] {
    let padding = [UInt8](repeating: 0, count: paddedLength(data.count) - data.count)
    return bigEndianBytes(kind.rawValue) + bigEndianBytes(UInt32(data.count)) + data + padding
  }

  /// The bytes of an extension with as much data, its head and padding included.
  static func encodedLength(_ length: Int) -> Int { 8 + paddedLength(length) }

  private static func paddedLength(_ length: Int) -> Int { (length + 7) & ~7 }

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

  public init(offset: HostOffset, length: UInt64) {
    self.offset = offset
    self.length = length
  }

  public init(parsing bytes: Span<UInt8>) throws(FormatError) {
    guard bytes.count == Self.length else {
      throw .badField(
        name: "length of the encryption header extension", found: UInt64(bytes.count),
        allowed: "\(Self.length)")
    }
    offset = HostOffset(bytes.be64(0))
    length = bytes.be64(8)
  }

  /// The data of the extension.
  public var encoded: [UInt8] { bigEndianBytes(offset.bytes) + bigEndianBytes(length) }
}
