package import BlockCore
package import QCOW2Format

/// What an image says about the other things that it needs: read before it can be opened.
///
/// Nothing named here has been looked at, let alone opened [SEC-1].
package struct ImageReferences: Sendable {
  /// The header, validated.
  package internal(set) var header: Header
  /// The name of the backing file as it stands in the image; nil if there is none.
  package private(set) var backingFile: String?
  /// The format of the backing file by the header extension; nil if the image does not say.
  package private(set) var backingFormat: String?
  /// The name of the external data file; nil if the image does not say.
  package private(set) var dataFile: String?
  /// Where the LUKS header lies; nil if there is none.
  package private(set) var encryptionHeader: EncryptionHeaderPointer?

  /// Reads the header, its extensions and the backing file's name: the first cluster at most.
  ///
  /// - Throws: ``ImageError/format(_:)`` for a header that breaks the format, names that are not
  ///   UTF-8 included.
  package static func read(
    _ file: any HostFile
  ) async throws(ImageError) -> ImageReferences {
    let storage = ImageStorage(file: file, health: ImageHealth())
    let length = try await storage.length()
    let header = try await Image.readHeader(storage, fileLength: length)
    let cluster = IOBuffer(count: Int(header.geometry.clusterSize))
    try await storage.read(into: cluster, at: HostOffset(0))
    defer { withExtendedLifetime(cluster) {} }
    do {
      return try unsafe ImageReferences(
        header, UnsafeRawBufferPointer(start: cluster.base, count: cluster.count))
    } catch { throw .format(error) }
  }

  private init(_ header: Header, _ cluster: UnsafeRawBufferPointer) throws(FormatError) {
    self.header = header
    var end = cluster.count
    if header.backingFileOffset != 0 {
      let start = Int(header.backingFileOffset)
      end = start
      backingFile = try unsafe Self.text(
        cluster, start, Int(header.backingFileSize), "backing file name")
    }
    // Version 2 has extensions, too: after its 72 bytes.
    let extensions = try unsafe HeaderExtension.list(
      in: cluster, from: Int(header.headerLength), to: max(end, Int(header.headerLength)))
    for found in extensions {
      switch found.kind {
      case .backingFormat:
        backingFormat = try unsafe Self.text(
          cluster, found.offset, found.length, "backing file format")
      case .dataFileName:
        dataFile = try unsafe Self.text(cluster, found.offset, found.length, "data file name")
      case .encryptionHeader:
        let bytes = unsafe Array(cluster[found.offset..<(found.offset + found.length)])
        encryptionHeader = try EncryptionHeaderPointer(parsing: bytes)
      default: break
      }
    }
  }

  private static func text(
    _ cluster: UnsafeRawBufferPointer, _ start: Int, _ length: Int, _ name: FieldName
  ) throws(FormatError) -> String {
    let bytes = unsafe Array(cluster[start..<(start + length)])
    guard let text = String(validating: bytes, as: UTF8.self), !bytes.contains(0) else {
      throw .badField(name: name, found: UInt64(length), allowed: "UTF-8 without zero bytes")
    }
    return text
  }
}
