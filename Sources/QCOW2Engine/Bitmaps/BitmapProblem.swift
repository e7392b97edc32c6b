package import BlockCore
package import QCOW2Format

/// Why a bitmap, or all of them, cannot be kept up to date.
package enum BitmapProblem: Error, Equatable, Sendable {
  /// The extension, the directory or an entry of it breaks the format.
  case format(FormatError)
  /// The header has the feature bit, but not exactly one extension.
  case extensions
  /// A cluster of the bitmap's structures is used by something else, or has a refcount other than
  /// 1.
  case notAlone(cluster: HostCluster)
  /// Extra data that is not marked compatible: what it asks of a writer is unknown.
  case unknownExtraData(bytes: UInt32)
  /// More memory than ``BitmapLoader/mostMemory`` for the bits of all bitmaps.
  case tooLarge(bytes: UInt64)
  /// Longer tables than ``BitmapLoader/mostTableEntries`` in all.
  case tooManyEntries(UInt64)

  /// In the form of the part of an error line after the last colon.
  package var message: String {
    switch self {
    case .format(let error): error.message
    case .extensions: "autoclear bit 0 is set without exactly one bitmaps extension"
    case .notAlone(let cluster):
      "host cluster \(cluster.number) does not belong to the bitmap alone"
    case .unknownExtraData(let bytes):
      "\(bytes) bytes of unknown extra data, expected 0 or the flag extra_data_compatible"
    case .tooLarge(let bytes):
      "tracking needs \(bytes) bytes of memory, more than \(BitmapLoader.mostMemory) in all"
    case .tooManyEntries(let count):
      "\(count) table entries, more than \(BitmapLoader.mostTableEntries) in all"
    }
  }
}
