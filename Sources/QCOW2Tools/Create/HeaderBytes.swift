import BlockCore
import QCOW2Format

/// The first cluster of a new image.
enum HeaderBytes {
  /// The header that QEMU writes: with the compression type and its padding.
  private static let v3Length = 112
  /// QEMU leaves the feature name table out of clusters smaller than this.
  private static let smallestClusterWithNames = 4096

  /// Fills in the header and its extensions; `block` is one cluster of zeros.
  static func write(_ options: CreateOptions, _ layout: ImageLayout, into block: IOBuffer) {
    let base = unsafe block.base
    unsafe base.storeBE32(Header.magic, 0)
    unsafe base.storeBE32(options.version, 4)
    unsafe base.storeBE32(UInt32(options.clusterBits), 20)
    unsafe base.storeBE64(options.virtualSize, 24)
    unsafe base.storeBE32(UInt32(layout.l1Entries), Header.Field.l1Size)
    unsafe base.storeBE64(layout.l1Table.bytes, Header.Field.l1TableOffset)
    unsafe base.storeBE64(layout.refcountTable.bytes, Header.Field.refcountTableOffset)
    unsafe base.storeBE32(UInt32(layout.refcountTableClusters), Header.Field.refcountTableClusters)
    guard options.version == 3 else { return }
    let compatible: CompatibleFeatures = options.lazyRefcounts ? .lazyRefcounts : []
    unsafe base.storeBE64(compatible.rawValue, 80)
    unsafe base.storeBE32(UInt32(options.refcountOrder), 96)
    unsafe base.storeBE32(UInt32(v3Length), 100)
    if block.count >= smallestClusterWithNames { unsafe writeNames(into: base + v3Length) }
  }

  private static func writeNames(into area: UnsafeMutableRawPointer) {
    let names = FeatureNames.standard.encoded
    unsafe area.storeBE32(HeaderExtension.Kind.featureNames.rawValue, 0)
    unsafe area.storeBE32(UInt32(names.count), 4)
    unsafe names.withUnsafeBytes { source in
      unsafe UnsafeMutableRawBufferPointer(start: area + 8, count: names.count).copyMemory(
        from: source)
    }
  }
}
