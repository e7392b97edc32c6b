/// Turns the name of a file as it stands in an image into a path.
enum ReferenceName {
  /// The path that `name` means in the image at `referrer`, an absolute path; of a data file,
  /// `referrer` is the current directory, with a slash at its end.
  ///
  /// As QEMU does: a relative name counts from the directory of the path by which the referring
  /// image was opened, so for an image opened through a symbolic link from the link's directory,
  /// and that of a backing file never from the current directory [COW-10]; text before a colon,
  /// with no slash in between, is a protocol. Of these only `file:` is a file, and only with an
  /// absolute path: what QEMU does with a relative one depends on the current directory. Nothing is
  /// ever opened for the others [SEC-1].
  static func path(
    of name: String, from referrer: String
  ) throws(DiskImageError.Reason) -> String {
    if name.isEmpty { throw .emptyName }
    guard let scheme = scheme(of: name) else { return FilePath.combine(referrer, name) }
    if scheme == "json" { throw .jsonName }
    let rest = name.dropFirst(scheme.count + 1)
    guard scheme == "file" else { throw .protocolName(scheme) }
    guard rest.hasPrefix("/") else { throw .relativeURL }
    return String(rest)
  }

  /// What stands before a colon, if no slash comes first.
  private static func scheme(of name: String) -> String? {
    guard let end = name.firstIndex(where: { $0 == ":" || $0 == "/" }), name[end] == ":" else {
      return nil
    }
    return String(name[..<end])
  }
}
