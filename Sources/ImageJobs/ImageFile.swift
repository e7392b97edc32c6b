package import QCOW2Tools

/// The file of an image, open, as a ``FileJob`` reads or mends it.
package struct ImageFile {
  /// The file's bytes; opened for writing if the job changes the image.
  package let bytes: FileBytes
  /// What the image is known by; relative names that it has count from there.
  package let path: String

  /// An open file; `path` is what the image is known by.
  package init(_ bytes: FileBytes, path: String) {
    self.bytes = bytes
    self.path = path
  }
}
