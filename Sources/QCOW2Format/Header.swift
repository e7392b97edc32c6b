/// The fields of a qcow2 header, versions 2 and 3, as found; see ``validate(fileLength:)``.
///
/// Version 2 has the fields up to `snapshotsOffset`; the others then have their defaults and are
/// never read from, or written to, the file. Source: qcow2 specification, "Header".
public struct Header: Equatable, Sendable {
  public static let magic: UInt32 = 0x5146_49fb
  /// The length of a version 2 header.
  public static let v2Length = 72
  /// The length of the shortest version 3 header.
  public static let v3Length = 104

  public var version: UInt32
  public var backingFileOffset: UInt64
  public var backingFileSize: UInt32
  public var clusterBits: UInt32
  /// The virtual size in bytes.
  public var size: UInt64
  public var cryptMethod: UInt32
  /// The number of entries in the active L1 table.
  public var l1Size: UInt32
  public var l1TableOffset: UInt64
  public var refcountTableOffset: UInt64
  public var refcountTableClusters: UInt32
  public var snapshotCount: UInt32
  public var snapshotsOffset: UInt64
  public var incompatible: IncompatibleFeatures = []
  public var compatible: CompatibleFeatures = []
  public var autoclear: AutoclearFeatures = []
  public var refcountOrder: UInt32 = 4
  public var headerLength: UInt32 = UInt32(Header.v2Length)
  public var compressionType: UInt8 = 0

  /// Byte positions of the fields that are edited in place; each lies within one 512-byte sector.
  public enum Field {
    public static let size = 24
    public static let l1Size = 36
    public static let l1TableOffset = 40
    public static let refcountTableOffset = 48
    public static let refcountTableClusters = 56
    public static let incompatible = 72
    public static let autoclear = 88
  }

  /// Reads the fields from the first bytes of a file; checks only what is needed to read on.
  ///
  /// - Parameter bytes: The start of the file; 112 bytes hold every field known here.
  /// - Throws: ``FormatError`` if there is no header of version 2 or 3.
  public init(parsing bytes: UnsafeRawBufferPointer) throws(FormatError) {
    guard let base = bytes.baseAddress, bytes.count >= Self.v2Length else {
      throw .truncated(
        structure: "header", needed: UInt64(Self.v2Length), available: UInt64(bytes.count))
    }
    guard unsafe base.be32(0) == Self.magic else { throw unsafe .notQCOW2(magic: base.be32(0)) }
    version = unsafe base.be32(4)
    guard version == 2 || version == 3 else { throw .unsupportedVersion(version) }
    backingFileOffset = unsafe base.be64(8)
    backingFileSize = unsafe base.be32(16)
    clusterBits = unsafe base.be32(20)
    size = unsafe base.be64(24)
    cryptMethod = unsafe base.be32(32)
    l1Size = unsafe base.be32(36)
    l1TableOffset = unsafe base.be64(40)
    refcountTableOffset = unsafe base.be64(48)
    refcountTableClusters = unsafe base.be32(56)
    snapshotCount = unsafe base.be32(60)
    snapshotsOffset = unsafe base.be64(64)
    if version == 3 { try unsafe parseVersion3(base, available: bytes.count) }
  }

  private mutating func parseVersion3(
    _ base: UnsafeRawPointer, available: Int
  ) throws(FormatError) {
    guard available >= Self.v3Length else {
      throw .truncated(
        structure: "header", needed: UInt64(Self.v3Length), available: UInt64(available))
    }
    incompatible = unsafe IncompatibleFeatures(rawValue: base.be64(72))
    compatible = unsafe CompatibleFeatures(rawValue: base.be64(80))
    autoclear = unsafe AutoclearFeatures(rawValue: base.be64(88))
    refcountOrder = unsafe base.be32(96)
    headerLength = unsafe base.be32(100)
    if headerLength > 104 && available > 104 {
      compressionType = unsafe base.load(fromByteOffset: 104, as: UInt8.self)
    }
  }

  /// The geometry; valid after ``validate(fileLength:)``.
  public var geometry: ClusterGeometry {
    ClusterGeometry(
      clusterBits: Int(clusterBits), refcountOrder: Int(refcountOrder),
      extendedL2: incompatible.contains(.extendedL2))
  }

  /// Whether L2 entries have a zero flag.
  public var hasZeroFlag: Bool { version >= 3 }
}
