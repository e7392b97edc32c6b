package import BlockCore
package import QCOW2Format

extension HeaderCluster {
  /// Reads and judges the first cluster of an image: what an open starts from.
  ///
  /// - Throws: ``ImageError/format(_:)`` for a header that breaks the format, names that are not
  ///   UTF-8 included.
  package static func read(_ file: any HostFile) async throws(ImageError) -> HeaderCluster {
    let storage = ImageStorage(file: file, health: ImageHealth())
    var reader = HeaderClusterReader(fileLength: try await storage.length())
    while true {
      let buffer = IOBuffer(count: reader.wanted)
      try await storage.read(into: buffer, at: HostOffset(0))
      do throws(FormatError) {
        let found = try buffer.withBytes { bytes throws(FormatError) in try reader.take(bytes) }
        if let found { return found }
      } catch { throw .format(error) }
    }
  }
}
