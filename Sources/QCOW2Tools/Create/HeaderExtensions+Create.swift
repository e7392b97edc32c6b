import BlockCore
import QCOW2Format

/// The area after the header fields of a new image: extensions, then the backing file's name.
///
/// In QEMU's order: backing format, data file, feature names, end marker, name.
struct HeaderArea {
  /// QEMU leaves the feature name table out of clusters of this size and smaller.
  private static let largestClusterWithoutNames: UInt64 = 4096

  private(set) var bytes: [UInt8] = []
  /// Where the name starts, counted from the start of the area; nil without a backing file.
  private(set) var namePosition: Int?

  init(_ options: CreateOptions) {
    if let format = options.backingFormat { add(.backingFormat, Array(format.utf8)) }
    if let dataFile = options.dataFile { add(.dataFileName, Array(dataFile.utf8)) }
    if options.version >= 3 && options.clusterSize > Self.largestClusterWithoutNames {
      add(.featureNames, FeatureNames.standard.encoded)
    }
    add(.end, [])
    guard let name = options.backingFile else { return }
    namePosition = bytes.count
    bytes += Array(name.utf8)
  }

  private mutating func add(_ kind: HeaderExtension.Kind, _ data: [UInt8]) {
    for value in [kind.rawValue, UInt32(data.count)] {
      for shift in [24, 16, 8, 0] as [UInt32] {
        bytes.append(UInt8(truncatingIfNeeded: value >> shift))
      }
    }
    bytes += data
    bytes += [UInt8](repeating: 0, count: (8 - data.count % 8) % 8)
  }
}
