import QCOW2Format

/// The virtual size of a backing file, for an image that is to have the same.
package enum BackingSize {
  /// Reads the size of the file `name`, as it stands in an image at `image`.
  ///
  /// - Parameters:
  ///   - name: Relative to the directory of the image.
  ///   - format: raw or qcow2; it is never guessed.
  ///   - image: The path of the image that is to be created.
  ///   - lock: Takes the locks of a reader.
  /// - Returns: The size in bytes, in whole sectors.
  /// - Throws: ``ToolError/backing(name:_:)`` with what is wrong with the backing file.
  package static func read(
    _ name: String, format: String, image: String, lock: FileBytes.Locker
  ) throws(ToolError) -> UInt64 {
    do throws(ToolError) {
      guard format == "raw" || format == "qcow2" else {
        throw .option(.badValue(name: "backing_fmt", found: format, allowed: "raw or qcow2"))
      }
      if let problem = FileReference(parsing: name).problem { throw .name(problem) }
      let file = try FileBytes(path: path(name, of: image), access: .readOnly, lock: lock)
      if format == "raw" { return (file.length + 511) & ~511 }
      return try HeaderCluster(reading: file).diskSize
    } catch {
      throw .backing(name: name, problem: error.message)
    }
  }

  /// The path of a backing file, seen from the current directory.
  package static func path(_ name: String, of image: String) -> String {
    let path = if case .path(let path) = FileReference(parsing: name) { path } else { name }
    guard !path.hasPrefix("/"), let slash = image.lastIndex(of: "/") else { return path }
    return image[...slash] + path
  }
}
