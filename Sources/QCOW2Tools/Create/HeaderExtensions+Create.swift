import BlockCore
import QCOW2Format

/// The area after the header fields of a new image: extensions, then the backing file's name.
///
/// In QEMU's order: backing format, data file, encryption header, feature names, end marker, name.
struct HeaderArea {
  /// QEMU leaves the feature name table out of clusters of this size and smaller.
  private static let largestClusterWithoutNames: UInt64 = 4096

  private(set) var bytes: [UInt8] = []
  /// Where the name starts, counted from the start of the area; nil without a backing file.
  private(set) var namePosition: Int?

  /// - Parameters:
  ///   - options: What to create.
  ///   - encryptionHeader: Where it begins; of no matter to the area's length.
  init(_ options: CreateOptions, encryptionHeader: HostOffset = HostOffset(0)) {
    if let format = options.backingFormat { add(.backingFormat, Array(format.utf8)) }
    if let dataFile = options.dataFile { add(.dataFileName, Array(dataFile.utf8)) }
    if let length = options.encryption?.headerLength {
      let pointer = Self.bigEndian(encryptionHeader.bytes) + Self.bigEndian(UInt64(length))
      add(.encryptionHeader, pointer)
    }
    if options.version >= 3 && options.clusterSize > Self.largestClusterWithoutNames {
      add(.featureNames, FeatureNames.standard.encoded)
    }
    add(.end, [])
    guard let name = options.backingFile else { return }
    namePosition = bytes.count
    bytes += Array(name.utf8)
  }

  private mutating func add(_ kind: HeaderExtension.Kind, _ data: [UInt8]) {
    bytes += Self.bigEndian(kind.rawValue) + Self.bigEndian(UInt32(data.count)) + data
    bytes += [UInt8](repeating: 0, count: (8 - data.count % 8) % 8)
  }

  private static func bigEndian<Number: FixedWidthInteger>(_ value: Number) -> [UInt8] {
    (1...MemoryLayout<Number>.size).map {
      UInt8(truncatingIfNeeded: value >> (Number.bitWidth - $0 * 8))
    }
  }
}
