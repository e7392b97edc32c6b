import QCOW2Format

/// Why a persistent bitmap cannot be changed or read as was asked for; nothing has been changed.
///
/// The texts are QEMU's where QEMU has one.
package enum BitmapRefusal: Equatable, Sendable {
  case unknown(String)
  case exists(String)
  case emptyName
  case longName
  case granularity
  case tooManyBitmaps
  case directoryFull
  case tooLarge
  /// Tracking would take more memory than ``BitmapLoader/mostMemory`` for all bitmaps.
  case tooMuchMemory(bytes: UInt64)
  /// The bitmap is marked in use: its bits are not to be trusted.
  case inconsistent(String)
  case version2(String)
  case sizes(UInt64, source: UInt64)
  /// The header cluster has no place for the bitmaps extension.
  case headerFull
  /// The directory, or a table, breaks the format.
  case damaged(BitmapProblem)

  /// The reason in the form of the end of an error line.
  package var text: String {
    switch self {
    case .unknown(let name): "Dirty bitmap '\(name)' not found"
    case .exists(let name): "Bitmap already exists: \(name)"
    case .emptyName: "Bitmap name cannot be empty"
    case .longName: "Bitmap name too long, expected \(BitmapEntry.mostNameLength) bytes at most"
    case .granularity:
      "Granularity must be power of 2 and at least 512, and at most \(UInt64(1) << 31)"
    case .tooManyBitmaps:
      "Maximum number of persistent bitmaps is already reached: \(BitmapsExtension.mostBitmaps)"
    case .directoryFull: "Not enough space in the bitmap directory"
    case .tooLarge: "Too much space will be occupied by the bitmap. Use larger granularity"
    case .tooMuchMemory(let bytes):
      "Tracking it would take \(bytes) bytes of memory in all, more than \(BitmapLoader.mostMemory): use a "
        + "larger granularity, or remove or disable other bitmaps"
    case .inconsistent(let name):
      "Bitmap '\(name)' is inconsistent and cannot be used: remove it from the image"
    case .version2(let name):
      "Bitmap '\(name)' cannot be stored in an image of version 2: qublk amend -o compat=1.1 makes it one "
        + "of version 3"
    case .sizes(let size, let source):
      "Bitmaps are of different sizes (destination size is \(size) and source size is \(source)) and "
        + "can't be merged"
    case .headerFull:
      "the header cluster has no room for the bitmaps extension: convert the image to one with larger "
        + "clusters"
    case .damaged(let problem):
      "the persistent bitmaps cannot be read: \(problem.message): \"qublk check\" says more"
    }
  }
}
