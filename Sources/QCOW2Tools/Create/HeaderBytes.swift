import BlockCore
import QCOW2Format

/// The first cluster of a new image.
enum HeaderBytes {
  /// The header that QEMU writes: with the compression type and its padding.
  private static let v3Length = 112

  /// The bytes before the extensions.
  private static func length(_ version: UInt32) -> Int {
    version == 2 ? Header.v2Length : v3Length
  }

  /// Throws if the names do not fit into the first cluster.
  static func check(_ options: CreateOptions) throws(OptionError) {
    if let name = options.backingFile, name.utf8.count > 1023 {
      throw .nameTooLong(bytes: UInt64(name.utf8.count), allowed: 1023)
    }
    let needed = UInt64(length(options.version) + HeaderArea(options).bytes.count)
    guard needed <= options.clusterSize else {
      throw .nameTooLong(bytes: needed, allowed: options.clusterSize)
    }
  }

  /// Fills in the header and its extensions; `block` is one cluster of zeros, and large enough.
  static func write(_ options: CreateOptions, _ layout: ImageLayout, into block: IOBuffer) {
    let base = unsafe block.base
    unsafe base.storeBE32(Header.magic, 0)
    unsafe base.storeBE32(options.version, 4)
    unsafe base.storeBE32(UInt32(options.clusterBits), 20)
    unsafe base.storeBE64(options.virtualSize, 24)
    unsafe base.storeBE32(options.encryption?.cryptMethod ?? 0, 32)
    unsafe base.storeBE32(UInt32(layout.l1Entries), Header.Field.l1Size)
    unsafe base.storeBE64(layout.l1Table.bytes, Header.Field.l1TableOffset)
    unsafe base.storeBE64(layout.refcountTable.bytes, Header.Field.refcountTableOffset)
    unsafe base.storeBE32(UInt32(layout.refcountTableClusters), Header.Field.refcountTableClusters)
    if options.version == 3 { writeVersion3(options, into: block) }
    writeArea(options, layout, into: block)
  }

  private static func writeVersion3(_ options: CreateOptions, into block: IOBuffer) {
    let base = unsafe block.base
    var incompatible: IncompatibleFeatures = []
    if options.dataFile != nil { incompatible.insert(.externalDataFile) }
    if options.usesZstd { incompatible.insert(.compressionType) }
    if options.extendedL2 { incompatible.insert(.extendedL2) }
    let compatible: CompatibleFeatures = options.lazyRefcounts ? .lazyRefcounts : []
    let autoclear: AutoclearFeatures = options.hasRawDataFile ? .rawExternalData : []
    unsafe base.storeBE64(incompatible.rawValue, Header.Field.incompatible)
    unsafe base.storeBE64(compatible.rawValue, 80)
    unsafe base.storeBE64(autoclear.rawValue, Header.Field.autoclear)
    unsafe base.storeBE32(UInt32(options.refcountOrder), 96)
    unsafe base.storeBE32(UInt32(v3Length), 100)
    unsafe base.storeBytes(of: options.usesZstd ? 1 : 0, toByteOffset: 104, as: UInt8.self)
  }

  private static func writeArea(
    _ options: CreateOptions, _ layout: ImageLayout, into block: IOBuffer
  ) {
    let start = length(options.version)
    let area = HeaderArea(options, encryptionHeader: layout.encryptionHeader)
    precondition(start + area.bytes.count <= block.count)  // check(_:) came before
    let base = unsafe block.base
    unsafe area.bytes.withUnsafeBytes { source in
      unsafe UnsafeMutableRawBufferPointer(start: base + start, count: source.count).copyMemory(
        from: source)
    }
    guard let position = area.namePosition else { return }
    unsafe base.storeBE64(UInt64(start + position), 8)
    unsafe base.storeBE32(UInt32(area.bytes.count - position), 16)
  }
}
