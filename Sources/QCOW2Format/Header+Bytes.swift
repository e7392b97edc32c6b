import BlockCore

/// Where each field stands, and in how many bytes: known here only.
extension Header {
  /// Byte positions of the fields.
  enum Field {
    static let magic = 0
    static let version = 4
    static let backingFileOffset = 8
    static let backingFileSize = 16
    static let clusterBits = 20
    static let size = 24
    static let cryptMethod = 32
    static let l1Size = 36
    static let l1TableOffset = 40
    static let refcountTableOffset = 48
    static let refcountTableClusters = 56
    static let snapshotCount = 60
    static let snapshotsOffset = 64
    static let incompatible = 72
    static let compatible = 80
    static let autoclear = 88
    static let refcountOrder = 96
    static let headerLength = 100
    static let compressionType = 104
  }

  /// Reads the fields from the first bytes of a file; checks only what is needed to read on.
  ///
  /// - Parameter bytes: The start of the file; 112 bytes hold every field known here.
  /// - Throws: ``FormatError`` if there is no header of version 2 or 3.
  init(parsing bytes: Span<UInt8>) throws(FormatError) {
    guard bytes.count >= Self.v2Length else {
      throw .truncated(
        structure: "header", needed: UInt64(Self.v2Length), available: UInt64(bytes.count))
    }
    let magic = bytes.be32(Field.magic)
    guard magic == Self.magic else { throw .notQCOW2(magic: magic) }
    version = bytes.be32(Field.version)
    guard version == 2 || version == 3 else { throw .unsupportedVersion(version) }
    backingFileOffset = bytes.be64(Field.backingFileOffset)
    backingFileSize = bytes.be32(Field.backingFileSize)
    clusterBits = bytes.be32(Field.clusterBits)
    size = bytes.be64(Field.size)
    cryptMethod = bytes.be32(Field.cryptMethod)
    l1Size = bytes.be32(Field.l1Size)
    l1TableOffset = bytes.be64(Field.l1TableOffset)
    refcountTableOffset = bytes.be64(Field.refcountTableOffset)
    refcountTableClusters = bytes.be32(Field.refcountTableClusters)
    snapshotCount = bytes.be32(Field.snapshotCount)
    snapshotsOffset = bytes.be64(Field.snapshotsOffset)
    if version == 3 { try parseVersion3(bytes) }
  }

  private mutating func parseVersion3(_ bytes: Span<UInt8>) throws(FormatError) {
    guard bytes.count >= Self.v3Length else {
      throw .truncated(
        structure: "header", needed: UInt64(Self.v3Length), available: UInt64(bytes.count))
    }
    incompatible = IncompatibleFeatures(rawValue: bytes.be64(Field.incompatible))
    compatible = CompatibleFeatures(rawValue: bytes.be64(Field.compatible))
    autoclear = AutoclearFeatures(rawValue: bytes.be64(Field.autoclear))
    refcountOrder = bytes.be32(Field.refcountOrder)
    headerLength = bytes.be32(Field.headerLength)
    if headerLength > Field.compressionType && bytes.count > Field.compressionType {
      compressionType = bytes[Field.compressionType]
    }
  }

  /// The bytes of the header of a new image, ``headerLength`` of them; what no field is, is zero.
  public var encoded: [UInt8] {
    var bytes = [UInt8](repeating: 0, count: Int(headerLength))
    var span = bytes.mutableSpan
    span.storeBE(Self.magic, Field.magic)
    span.storeBE(version, Field.version)
    span.storeBE(backingFileOffset, Field.backingFileOffset)
    span.storeBE(backingFileSize, Field.backingFileSize)
    span.storeBE(clusterBits, Field.clusterBits)
    span.storeBE(size, Field.size)
    span.storeBE(cryptMethod, Field.cryptMethod)
    span.storeBE(l1Size, Field.l1Size)
    span.storeBE(l1TableOffset, Field.l1TableOffset)
    span.storeBE(refcountTableOffset, Field.refcountTableOffset)
    span.storeBE(refcountTableClusters, Field.refcountTableClusters)
    span.storeBE(snapshotCount, Field.snapshotCount)
    span.storeBE(snapshotsOffset, Field.snapshotsOffset)
    if version == 3 { encodeVersion3(into: &span) }
    return bytes
  }

  private func encodeVersion3(into span: inout MutableSpan<UInt8>) {
    span.storeBE(incompatible.rawValue, Field.incompatible)
    span.storeBE(compatible.rawValue, Field.compatible)
    span.storeBE(autoclear.rawValue, Field.autoclear)
    span.storeBE(refcountOrder, Field.refcountOrder)
    span.storeBE(headerLength, Field.headerLength)
    if headerLength > Field.compressionType { span[Field.compressionType] = compressionType }
  }
}

extension Header {
  /// Takes the fields as they are, whatever they say: for who judges each by itself.
  ///
  /// - Parameter bytes: The first 112 bytes of a file, zeros beyond its end.
  public init(unjudged bytes: Span<UInt8>) {
    self.init(version: 3, clusterBits: 16, size: bytes.be64(Field.size))
    version = bytes.be32(Field.version)
    backingFileOffset = bytes.be64(Field.backingFileOffset)
    backingFileSize = bytes.be32(Field.backingFileSize)
    clusterBits = bytes.be32(Field.clusterBits)
    cryptMethod = bytes.be32(Field.cryptMethod)
    l1Size = bytes.be32(Field.l1Size)
    l1TableOffset = bytes.be64(Field.l1TableOffset)
    snapshotCount = bytes.be32(Field.snapshotCount)
    snapshotsOffset = bytes.be64(Field.snapshotsOffset)
    headerLength = UInt32(Self.v2Length)
    guard version != 2 else { return }
    incompatible = IncompatibleFeatures(rawValue: bytes.be64(Field.incompatible))
    headerLength = bytes.be32(Field.headerLength)
    if headerLength > Field.compressionType { compressionType = bytes[Field.compressionType] }
  }
}
