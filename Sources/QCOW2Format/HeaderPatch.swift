public import BlockCore

/// A change of the header of an image that is in use: fields that change together, in place.
///
/// All lie in the first 512-byte sector, which disks write whole or not at all; every other byte of
/// it stays. Version 2 has no features, so a change of them does nothing there.
public enum HeaderPatch: Equatable, Sendable {
  /// The virtual size in bytes.
  case size(UInt64)
  case l1Table(HostOffset, entries: UInt32)
  case refcountTable(HostOffset, clusters: UInt32)
  /// Another snapshot table with as many entries.
  case snapshotTable(HostOffset)
  case incompatible(IncompatibleFeatures)
  case autoclear(AutoclearFeatures)

  /// The bytes that hold every field that may change.
  public static let sectorLength = 512

  /// Makes the change in the bytes of a header.
  ///
  /// - Parameters:
  ///   - sector: The first ``sectorLength`` bytes of an image.
  ///   - version: Of the header.
  public func write(into sector: inout MutableSpan<UInt8>, version: UInt32) {
    switch self {
    case .size(let size): sector.storeBE(size, Header.Field.size)
    case .l1Table(let offset, let entries):
      sector.storeBE(entries, Header.Field.l1Size)
      sector.storeBE(offset.bytes, Header.Field.l1TableOffset)
    case .refcountTable(let offset, let clusters):
      sector.storeBE(offset.bytes, Header.Field.refcountTableOffset)
      sector.storeBE(clusters, Header.Field.refcountTableClusters)
    case .snapshotTable(let offset): sector.storeBE(offset.bytes, Header.Field.snapshotsOffset)
    case .incompatible(let bits):
      if version >= 3 { sector.storeBE(bits.rawValue, Header.Field.incompatible) }
    case .autoclear(let bits):
      if version >= 3 { sector.storeBE(bits.rawValue, Header.Field.autoclear) }
    }
  }
}

extension Header {
  /// Makes the change in the fields.
  public mutating func apply(_ patch: HeaderPatch) {
    switch patch {
    case .size(let size): self.size = size
    case .l1Table(let offset, let entries):
      l1TableOffset = offset.bytes
      l1Size = entries
    case .refcountTable(let offset, let clusters):
      refcountTableOffset = offset.bytes
      refcountTableClusters = clusters
    case .snapshotTable(let offset): snapshotsOffset = offset.bytes
    case .incompatible(let bits):
      if version >= 3 { incompatible = bits }
    case .autoclear(let bits):
      if version >= 3 { autoclear = bits }
    }
  }
}
