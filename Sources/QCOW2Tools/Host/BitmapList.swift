import BlockCore
package import QCOW2Format

/// Reads bitmap directories.
package enum BitmapList {
  /// Reads and checks the whole directory.
  ///
  /// - Parameters:
  ///   - bytes: The image.
  ///   - head: Its header.
  ///   - location: Checked by the caller: at most 64 MiB long.
  /// - Returns: The bitmaps in the order of the directory.
  /// - Throws: ``ToolError/format(_:)`` at the first entry that is not what the format allows.
  package static func read(
    _ bytes: any ImageBytes, _ head: HeaderCluster, _ location: BitmapsExtension
  ) throws(ToolError) -> [BitmapDirectory.Item] {
    do throws(FormatError) { try location.requireInside(fileLength: head.fileLength) } catch {
      throw .format(error)
    }
    let directory = try bytes.block(
      at: location.directory, count: Int(location.directoryLength))
    do throws(FormatError) {
      return try directory.withBytes { bytes throws(FormatError) in
        try BitmapDirectory(parsing: bytes, location) { entry throws(FormatError) in
          try entry.validate(head.geometry, diskSize: head.diskSize)
        }.items
      }
    } catch { throw .format(error) }
  }
}
