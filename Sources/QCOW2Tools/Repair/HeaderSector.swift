import BlockCore
import QCOW2Format

/// The first sector of an image, changed field by field: atomic on every disk.
struct HeaderSector {
  private let file: any WritableImageBytes
  private let sector: IOBuffer

  init(_ file: any WritableImageBytes) throws(ToolError) {
    self.file = file
    sector = try file.block(at: HostOffset(0), count: 512)
  }

  /// Sets bits, durably; a version 3 image.
  func insert(_ bits: IncompatibleFeatures) throws(ToolError) {
    _ = try change { $0.insert(bits).inserted }
  }

  /// Clears bits, durably; a version 3 image.
  ///
  /// - Returns: whether any was set.
  @discardableResult func remove(_ bits: IncompatibleFeatures) throws(ToolError) -> Bool {
    try change { features in
      let before = features
      features.subtract(bits)
      return features != before
    }
  }

  private func change(
    _ edit: (inout IncompatibleFeatures) -> Bool
  ) throws(ToolError) -> Bool {
    var features = IncompatibleFeatures(rawValue: sector.be64(Header.Field.incompatible))
    let before = features
    _ = edit(&features)
    guard features != before else { return false }
    unsafe sector.base.storeBE64(features.rawValue, Header.Field.incompatible)
    try write()
    return true
  }

  /// Points the header at another refcount table, durably.
  func setRefcountTable(at offset: HostOffset, clusters: UInt64) throws(ToolError) {
    unsafe sector.base.storeBE64(offset.bytes, Header.Field.refcountTableOffset)
    unsafe sector.base.storeBE32(UInt32(clusters), Header.Field.refcountTableClusters)
    try write()
  }

  private func write() throws(ToolError) {
    try unsafe file.write(sector.bytes, at: HostOffset(0))
    try file.sync()
  }
}
