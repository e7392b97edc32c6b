import Glibc

/// The files of one create, which must be different ones: what image and data file held is lost.
enum DistinctFiles {
  private enum Key: Equatable {
    case file(device: UInt64, inode: UInt64)
    case device(UInt64)
  }

  /// Compares the files there are, by whatever names; changes nothing [COW-15].
  ///
  /// - Throws: ``OptionError/conflict(_:)`` if two of image, data file and backing file are the
  ///   same.
  static func require(_ options: CreateOptions, image path: String) throws(OptionError) {
    let image = key(path)
    let data = options.dataFile.flatMap(key)
    let backing = options.backingFile.flatMap { key(BackingSize.path($0, of: path)) }
    if image != nil && image == backing { throw .conflict(.backingIsImage) }
    if options.dataFile == path || (data != nil && data == image) {
      throw .conflict(.dataFileIsImage)
    }
    if data != nil && data == backing { throw .conflict(.dataFileIsBacking) }
  }

  /// What tells the file at a path from all others; nil if there is none.
  private static func key(_ path: String) -> Key? {
    var status = stat()
    guard unsafe stat(path, &status) == 0 else { return nil }
    return status.st_mode & S_IFMT == S_IFBLK
      ? .device(UInt64(status.st_rdev))
      : .file(device: UInt64(status.st_dev), inode: UInt64(status.st_ino))
  }
}
