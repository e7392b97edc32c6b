import BlockCore

/// The first cluster of an image, taken apart and judged: what every command and the engine start
/// from, so that all of them say the same of an image.
///
/// Nothing that is named here has been looked at, let alone opened [SEC-1].
public struct HeaderCluster: Sendable {
  /// The bytes that are needed to know how long a cluster is.
  static let startLength = 512

  /// Validated for reading; once a snapshot is selected, with its disk in place of the active one.
  public var header: Header
  public let fileLength: UInt64
  public let extensions: [HeaderExtension]
  /// The name of the backing file as it stands in the image; nil if there is none.
  public let backingFile: String?
  /// The format of the backing file by the header extension; nil if the image does not say.
  public let backingFormat: String?
  /// The name of the external data file; nil if the image does not say.
  public let dataFile: String?
  /// Where the LUKS header lies; nil if there is none.
  public let encryptionHeader: EncryptionHeaderPointer?
  /// Where the bitmap directory lies, or what is wrong with the extension that says so, which keeps
  /// nobody from the disk; nil if there is none.
  public let bitmaps: Result<BitmapsExtension, FormatError>?

  /// The cluster size by the first ``startLength`` bytes of a file.
  ///
  /// - Parameters:
  ///   - start: The first bytes, zeros beyond the end of the file.
  ///   - fileLength: The length of the file.
  /// - Returns: The bytes of a cluster.
  /// - Throws: What is wrong with the fixed fields.
  static func size(
    start: Span<UInt8>, fileLength: UInt64
  ) throws(FormatError) -> Int {
    let header = try parse(start, fileLength)
    return 1 << Int(header.clusterBits)
  }

  /// Reads the header, its extensions and names.
  ///
  /// - Parameters:
  ///   - cluster: The first cluster, zeros beyond the end of the file.
  ///   - fileLength: The length of the file.
  /// - Throws: ``FormatError`` for whatever makes an image useless for readers, too.
  public init(
    parsing cluster: Span<UInt8>, fileLength: UInt64
  ) throws(FormatError) {
    self.fileLength = fileLength
    header = try Self.parse(cluster, fileLength)
    let end = header.backingFileOffset == 0 ? cluster.count : Int(header.backingFileOffset)
    // Version 2 has extensions, too: after its 72 bytes.
    let found = try HeaderExtension.list(
      in: cluster, from: Int(header.headerLength), to: end)
    extensions = found
    try header.validate()
    backingFile =
      header.backingFileOffset == 0 || header.backingFileSize == 0
      ? nil
      : try Self.text(
        cluster, Int(header.backingFileOffset), Int(header.backingFileSize), "backing file name")
    func last(_ kind: HeaderExtension.Kind) -> HeaderExtension? { found.last { $0.kind == kind } }
    backingFormat = try Self.text(cluster, last(.backingFormat), "backing file format")
    dataFile = try Self.text(cluster, last(.dataFileName), "data file name")
    encryptionHeader = try last(.encryptionHeader).map { found throws(FormatError) in
      try EncryptionHeaderPointer(parsing: cluster.extracting(found.bytes))
    }
    let geometry = header.geometry
    bitmaps = last(.bitmaps).map { Self.bitmaps(cluster.extracting($0.bytes), geometry) }
  }

  private static func bitmaps(
    _ bytes: Span<UInt8>, _ geometry: ClusterGeometry
  ) -> Result<BitmapsExtension, FormatError> {
    do throws(FormatError) {
      let found = try BitmapsExtension(parsing: bytes)
      try found.validate(geometry)
      return .success(found)
    } catch { return .failure(error) }
  }

  private static func parse(
    _ bytes: Span<UInt8>, _ fileLength: UInt64
  ) throws(FormatError) -> Header {
    let available = Int(min(fileLength, UInt64(min(bytes.count, startLength))))
    let header = try Header(parsing: bytes.extracting(0..<available))
    try header.validateForm()
    return header
  }

  private static func text(
    _ cluster: Span<UInt8>, _ found: HeaderExtension?, _ name: FieldName
  ) throws(FormatError) -> String? {
    guard let found else { return nil }
    return try text(cluster, found.offset, found.length, name)
  }

  /// The text up to the first zero byte, as QEMU takes it.
  private static func text(
    _ cluster: Span<UInt8>, _ start: Int, _ length: Int, _ name: FieldName
  ) throws(FormatError) -> String {
    guard length <= cluster.count - start else {
      throw .truncated(
        structure: name, needed: UInt64(start + length), available: UInt64(cluster.count))
    }
    let bytes = cluster.copy(start..<(start + length)).prefix { $0 != 0 }
    guard let text = String(validating: bytes, as: UTF8.self) else {
      throw .badField(name: name, found: UInt64(length), allowed: "UTF-8")
    }
    return text
  }
}

extension HeaderCluster {
  public var geometry: ClusterGeometry { header.geometry }
  /// The virtual size in bytes, in whole sectors, as QEMU sees it.
  public var diskSize: UInt64 { header.size & ~511 }
  /// The bitmaps extension, if it is there and the autoclear bit says that it can be trusted.
  public var trustedBitmaps: Result<BitmapsExtension, FormatError>? {
    header.autoclear.contains(.bitmaps) ? bitmaps : nil
  }

  /// The extension of a kind that counts: the last one, as in QEMU; nil if there is none.
  public func last(_ kind: HeaderExtension.Kind) -> HeaderExtension? {
    extensions.last { $0.kind == kind }
  }

  /// Whether there is exactly one extension of a kind.
  public func hasOne(_ kind: HeaderExtension.Kind) -> Bool {
    extensions.count { $0.kind == kind } == 1
  }

  /// The bytes of the header, the extensions and the backing file's name of a new image.
  ///
  /// - Parameters:
  ///   - header: The fields; where the name lies is filled in.
  ///   - extensions: In the order in which they are to stand.
  ///   - backingFile: The name; nil if there is none.
  /// - Returns: The bytes, which may be more than a cluster has.
  public static func encode(
    _ header: Header, extensions: [(kind: HeaderExtension.Kind, data: [UInt8])],
    backingFile: String?
  ) -> [UInt8] {
    var header = header
    var area = extensions.flatMap { HeaderExtension.encode($0.kind, $0.data) }
    area += HeaderExtension.encode(.end)
    if let backingFile {
      header.backingFileOffset = UInt64(header.headerLength) + UInt64(area.count)
      header.backingFileSize = UInt32(backingFile.utf8.count)
      area += backingFile.utf8
    }
    return header.encoded + area
  }
}
