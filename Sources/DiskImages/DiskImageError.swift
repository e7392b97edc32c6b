package import QCOW2Engine

/// Why a disk image, or something that it refers to, could not be opened.
package enum DiskImageError: Error, Sendable {
  /// The engine refused the image at `path`.
  case image(path: String, ImageError)
}
