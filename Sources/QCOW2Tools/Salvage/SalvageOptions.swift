import QCOW2Format

/// What a user says of an image whose header may say it no more.
package struct SalvageOptions: Equatable, Sendable {
  /// In bytes.
  package var clusterSize: UInt64?
  /// Of the disk, in bytes.
  package var size: UInt64?
  /// Where the L1 table of the disk lies in the file, in bytes.
  package var l1Offset: UInt64?
  /// L2 tables that nothing leads to are looked for, and take the places of those that are lost.
  package var scans = false

  package init() {}

  /// What is wrong with an option; nil if nothing is.
  package var problem: String? {
    if let clusterSize, clusterSize.nonzeroBitCount != 1 || !(512...(2 << 20)).contains(clusterSize)
    {
      return "--cluster-size is \(clusterSize), expected a power of two from 512 to 2097152"
    }
    if let size, size == 0 || size > SalvageHeader.mostBytes {
      return "--size is \(size), expected 1 to \(SalvageHeader.mostBytes)"
    }
    let unit = clusterSize ?? 512
    if let l1Offset, l1Offset == 0 || l1Offset % unit != 0 || l1Offset >= FormatLimit.hostOffset {
      return "--l1-offset is \(l1Offset), expected a multiple of the cluster size above 0"
    }
    return nil
  }
}
