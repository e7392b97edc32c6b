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
  /// The length of the version 3 header of a new image: with the compression type and its padding.
  public static let newV3Length = 112

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

  /// The header of a new image without any table.
  ///
  /// - Parameters:
  ///   - version: 2 or 3.
  ///   - clusterBits: log2 of the cluster size.
  ///   - size: The virtual size in bytes.
  public init(version: UInt32, clusterBits: Int, size: UInt64) {
    self.version = version
    self.clusterBits = UInt32(clusterBits)
    self.size = size
    backingFileOffset = 0
    backingFileSize = 0
    cryptMethod = 0
    l1Size = 0
    l1TableOffset = 0
    refcountTableOffset = 0
    refcountTableClusters = 0
    snapshotCount = 0
    snapshotsOffset = 0
    headerLength = UInt32(version == 2 ? Self.v2Length : Self.newV3Length)
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
