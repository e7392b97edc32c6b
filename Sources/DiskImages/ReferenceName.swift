import QCOW2Format

/// Turns the name of a file as it stands in an image into a path.
enum ReferenceName {
  /// The path that `name` means in the image at `referrer`, an absolute path; of a data file,
  /// `referrer` is the current directory, with a slash at its end.
  ///
  /// As QEMU does: a relative name counts from the directory of the path by which the referring
  /// image was opened, so for an image opened through a symbolic link from the link's directory,
  /// and that of a backing file never from the current directory [COW-10]. `file:` is a file only
  /// with an absolute path: what QEMU does with a relative one depends on the current directory.
  /// Nothing is ever opened for other protocols [SEC-1].
  static func path(
    of name: String, from referrer: String
  ) throws(DiskImageError.Reason) -> String {
    switch FileReference(parsing: name) {
    case .path(let path): return FilePath.combine(referrer, path)
    case .empty: throw .emptyName
    case .json: throw .jsonName
    case .scheme(let scheme): throw .protocolName(scheme)
    case .relativeURL: throw .relativeURL
    }
  }
}
