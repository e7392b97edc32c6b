import BlockCore
import QCOW2Format

/// What stands in the first cluster of a new image.
enum HeaderBytes {
  /// QEMU leaves the feature name table out of clusters of this size and smaller.
  static let largestClusterWithoutNames: UInt64 = 4096

  /// Throws if the names do not fit into the first cluster.
  static func check(_ options: CreateOptions) throws(OptionError) {
    if let name = options.backingFile, name.utf8.count > FormatLimit.backingName {
      throw .nameTooLong(bytes: UInt64(name.utf8.count), allowed: FormatLimit.backingName)
    }
    let header = Header(
      version: options.version, clusterBits: options.clusterBits, size: options.virtualSize)
    let needed = UInt64(bytes(header, options, encryptionHeader: HostOffset(0)).count)
    guard needed <= options.clusterSize else {
      throw .nameTooLong(bytes: needed, allowed: options.clusterSize)
    }
  }

  /// The bytes at the start of the image; ``check(_:)`` came before, so one cluster holds them.
  static func bytes(_ options: CreateOptions, _ layout: ImageLayout) -> [UInt8] {
    bytes(header(options, layout), options, encryptionHeader: layout.encryptionHeader)
  }

  private static func bytes(
    _ header: Header, _ options: CreateOptions, encryptionHeader: HostOffset
  ) -> [UInt8] {
    HeaderCluster.encode(
      header, extensions: extensions(options, encryptionHeader: encryptionHeader),
      backingFile: options.backingFile)
  }

  private static func header(_ options: CreateOptions, _ layout: ImageLayout) -> Header {
    var header = Header(
      version: options.version, clusterBits: options.clusterBits, size: options.virtualSize)
    header.cryptMethod = options.encryption?.cryptMethod ?? 0
    header.apply(.l1Table(layout.l1Table, entries: UInt32(layout.l1Entries)))
    header.apply(layout.refcounts.headerPatch)
    header.refcountOrder = UInt32(options.refcountOrder)
    if options.dataFile != nil { header.incompatible.insert(.externalDataFile) }
    if options.usesZstd { header.incompatible.insert(.compressionType) }
    if options.extendedL2 { header.incompatible.insert(.extendedL2) }
    if options.lazyRefcounts { header.compatible.insert(.lazyRefcounts) }
    if options.hasRawDataFile { header.autoclear.insert(.rawExternalData) }
    header.compressionType = options.usesZstd ? 1 : 0
    return header
  }

  /// In QEMU's order: backing format, data file, encryption header, feature names.
  private static func extensions(
    _ options: CreateOptions, encryptionHeader: HostOffset
  ) -> [(kind: HeaderExtension.Kind, data: [UInt8])] {
    var found: [(kind: HeaderExtension.Kind, data: [UInt8])] = []
    if let format = options.backingFormat { found.append((.backingFormat, Array(format.utf8))) }
    if let dataFile = options.dataFile { found.append((.dataFileName, Array(dataFile.utf8))) }
    if let length = options.encryption?.headerLength {
      let pointer = EncryptionHeaderPointer(offset: encryptionHeader, length: UInt64(length))
      found.append((.encryptionHeader, pointer.encoded))
    }
    if options.version >= 3 && options.clusterSize > largestClusterWithoutNames {
      found.append((.featureNames, FeatureNames.standard.encoded))
    }
    return found
  }
}
