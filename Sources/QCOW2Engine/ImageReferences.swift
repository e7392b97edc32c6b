package import BlockCore
package import QCOW2Format

/// What an image says about the other things that it needs: read before it can be opened.
///
/// Nothing named here has been looked at, let alone opened [SEC-1].
package struct ImageReferences: Sendable {
  /// The header, validated for reading.
  package internal(set) var header: Header
  private let cluster: HeaderCluster

  /// The name of the backing file as it stands in the image; nil if there is none.
  package var backingFile: String? { cluster.backingFile }
  /// The format of the backing file by the header extension; nil if the image does not say.
  package var backingFormat: String? { cluster.backingFormat }
  /// The name of the external data file; nil if the image does not say.
  package var dataFile: String? { cluster.dataFile }
  /// Where the LUKS header lies; nil if there is none.
  package var encryptionHeader: EncryptionHeaderPointer? { cluster.encryptionHeader }

  /// Where the bitmap directory lies, or what is wrong with the extension; nil if there is not exactly
  /// one.
  var bitmaps: Result<BitmapsExtension, FormatError>? {
    cluster.hasOne(.bitmaps) ? cluster.bitmaps : nil
  }

  /// Reads the header, its extensions and the backing file's name: the first cluster at most.
  ///
  /// - Throws: ``ImageError/format(_:)`` for a header that breaks the format, names that are not
  ///   UTF-8 included.
  package static func read(
    _ file: any HostFile
  ) async throws(ImageError) -> ImageReferences {
    let storage = ImageStorage(file: file, health: ImageHealth())
    let length = try await storage.length()
    let start = IOBuffer(count: HeaderCluster.startLength)
    try await storage.read(into: start, at: HostOffset(0))
    let size = try parse(start) { bytes throws(FormatError) in
      try HeaderCluster.size(start: bytes, fileLength: length)
    }
    let buffer = IOBuffer(count: size)
    try await storage.read(into: buffer, at: HostOffset(0))
    let cluster = try parse(buffer) { bytes throws(FormatError) in
      try HeaderCluster(parsing: bytes, fileLength: length)
    }
    return ImageReferences(header: cluster.header, cluster: cluster)
  }

  private static func parse<Value>(
    _ buffer: IOBuffer, _ parse: (Span<UInt8>) throws(FormatError) -> Value
  ) throws(ImageError) -> Value {
    do throws(FormatError) { return try buffer.withBytes(parse) } catch { throw .format(error) }
  }
}
