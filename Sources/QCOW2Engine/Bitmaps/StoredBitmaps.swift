import BlockCore
import QCOW2Format

/// The bitmap directory that is in force, as the host file has it.
struct StoredBitmaps {
  /// Nil if there is none that counts.
  var location: BitmapsExtension?
  var records: [BitmapRecord] = []

  /// The host clusters of the directory.
  func directory(_ geometry: ClusterGeometry) -> [ClusterRun] {
    guard let location else { return [] }
    return [
      ClusterRun(
        start: geometry.hostCluster(of: location.directory),
        count: geometry.clusters(covering: location.directoryLength), isFresh: false)
    ]
  }

  /// The first bitmap of a name.
  ///
  /// - Throws: ``BitmapRefusal/unknown(_:)``.
  func index(of name: String) throws(ImageError) -> Int {
    let bytes = Array(name.utf8)
    guard let index = records.firstIndex(where: { $0.nameBytes == bytes }) else {
      throw .bitmapRefused(.unknown(name))
    }
    return index
  }

  /// Reads the directory.
  ///
  /// - Throws: ``BitmapRefusal/damaged(_:)``, or what the host says.
  static func read(
    _ storage: ImageStorage
  ) async throws(ImageError) -> StoredBitmaps {
    let head = try await HeaderCluster.read(storage.file)
    guard head.header.version >= 3, head.header.autoclear.contains(.bitmaps) else {
      return StoredBitmaps()
    }
    let location: BitmapsExtension
    do throws(FormatError) {
      guard head.hasOne(.bitmaps), let found = head.bitmaps else {
        throw .badField(
          name: "number of bitmaps extensions",
          found: UInt64(head.extensions.count { $0.kind == .bitmaps }), allowed: "1")
      }
      location = try found.get()
      try location.requireInside(fileLength: head.fileLength)
    } catch { throw .bitmapRefused(.damaged(.format(error))) }
    // In whole sectors, for files that are used directly.
    let buffer = IOBuffer(count: Int((location.directoryLength + 511) & ~511))
    try await storage.read(into: buffer, at: location.directory)
    do throws(FormatError) {
      return try buffer.withBytes { (bytes) throws(FormatError) in
        let bytes = bytes.extracting(0..<Int(location.directoryLength))
        let directory = try BitmapDirectory(parsing: bytes, location)
        var stored = StoredBitmaps(location: location)
        for item in directory.items { stored.records.append(BitmapRecord(item, in: bytes)) }
        return stored
      }
    } catch { throw .bitmapRefused(.damaged(.format(error))) }
  }
}
