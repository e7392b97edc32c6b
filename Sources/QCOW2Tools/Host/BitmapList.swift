import BlockCore
package import QCOW2Format

/// A persistent bitmap with its name.
package struct Bitmap: Equatable, Sendable {
  package let entry: BitmapEntry
  package let name: String
}

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
    _ bytes: any ImageBytes, _ head: ImageHead, _ location: BitmapsExtension
  ) throws(ToolError) -> [Bitmap] {
    guard location.directory.bytes <= head.fileLength,
      location.directoryLength <= head.fileLength - location.directory.bytes
    else {
      throw .format(
        .truncated(
          structure: "bitmap directory",
          needed: location.directory.bytes + location.directoryLength,
          available: head.fileLength))
    }
    let directory = try bytes.block(
      at: location.directory, count: Int(location.directoryLength))
    do throws(FormatError) { return try list(directory, head, location) } catch {
      throw .format(error)
    }
  }

  private static func list(
    _ directory: IOBuffer, _ head: ImageHead, _ location: BitmapsExtension
  ) throws(FormatError) -> [Bitmap] {
    var found: [Bitmap] = []
    var position: UInt64 = 0
    while position < location.directoryLength {
      let space = location.directoryLength - position
      guard space >= UInt64(BitmapEntry.fixedLength) else { throw tooLong(space) }
      let entry = unsafe BitmapEntry(parsing: directory.base + Int(position))
      guard entry.length <= space else { throw tooLong(entry.length) }
      try entry.validate(head.geometry, diskSize: head.diskSize)
      let name = directory.text(
        at: Int(position + entry.namePosition), count: Int(entry.nameLength))
      found.append(Bitmap(entry: entry, name: name))
      position += entry.length
    }
    guard found.count == Int(location.bitmapCount) else {
      throw .badField(
        name: "nb_bitmaps", found: UInt64(location.bitmapCount),
        allowed: "\(found.count), the entries of the directory")
    }
    return found
  }

  private static func tooLong(_ found: UInt64) -> FormatError {
    .badField(
      name: "length of a bitmap directory entry", found: found,
      allowed: "what is left of the directory")
  }
}
