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
  /// A snapshot table of `count` entries; offset 0 if there are none.
  case snapshots(HostOffset, count: UInt32)
  /// Where the backing file's name lies in the header cluster, and its bytes; both 0 for no backing file.
  case backingFile(offset: UInt64, length: UInt32)
  case incompatible(IncompatibleFeatures)
  case compatible(CompatibleFeatures)
  /// log2 of the width of refcounts; for a refcount table whose blocks have that width.
  case refcountOrder(UInt32)
  case autoclear(AutoclearFeatures)
  /// All of these, in this order.
  indirect case several([HeaderPatch])

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
    case .snapshots(let offset, let count):
      sector.storeBE(count, Header.Field.snapshotCount)
      sector.storeBE(offset.bytes, Header.Field.snapshotsOffset)
    case .backingFile(let offset, let length):
      sector.storeBE(offset, Header.Field.backingFileOffset)
      sector.storeBE(length, Header.Field.backingFileSize)
    case .incompatible(let bits):
      if version >= 3 { sector.storeBE(bits.rawValue, Header.Field.incompatible) }
    case .compatible(let bits):
      if version >= 3 { sector.storeBE(bits.rawValue, Header.Field.compatible) }
    case .refcountOrder(let order):
      if version >= 3 { sector.storeBE(order, Header.Field.refcountOrder) }
    case .autoclear(let bits):
      if version >= 3 { sector.storeBE(bits.rawValue, Header.Field.autoclear) }
    case .several(let patches):
      for patch in patches { patch.write(into: &sector, version: version) }
    }
  }
}

extension HeaderPatch {
  /// Makes the changes that `patches` wants of the header in a sector.
  ///
  /// - Parameters:
  ///   - sector: The first ``sectorLength`` bytes of an image.
  ///   - patches: Called once, with the header as it is.
  /// - Returns: Whether any of them changes a field.
  /// - Throws: If there is no header in the sector.
  public static func change(
    _ sector: inout MutableSpan<UInt8>, _ patches: (Header) -> [HeaderPatch]
  ) throws(FormatError) -> Bool {
    let header = try Header(parsing: sector.span)
    let wanted = patches(header).filter(header.isChanged)
    for patch in wanted { patch.write(into: &sector, version: header.version) }
    return !wanted.isEmpty
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
    case .snapshots(let offset, let count):
      snapshotsOffset = offset.bytes
      snapshotCount = count
    case .backingFile(let offset, let length):
      backingFileOffset = offset
      backingFileSize = length
    case .incompatible(let bits):
      if version >= 3 { incompatible = bits }
    case .compatible(let bits):
      if version >= 3 { compatible = bits }
    case .refcountOrder(let order):
      if version >= 3 { refcountOrder = order }
    case .autoclear(let bits):
      if version >= 3 { autoclear = bits }
    case .several(let patches):
      for patch in patches { apply(patch) }
    }
  }

  /// Whether the change is one: it does nothing where the fields are so already.
  public func isChanged(by patch: HeaderPatch) -> Bool {
    var patched = self
    patched.apply(patch)
    return patched != self
  }

  /// The change that sets feature bits.
  public func adding(_ bits: IncompatibleFeatures) -> HeaderPatch {
    .incompatible(incompatible.union(bits))
  }

  /// The change that clears feature bits.
  public func removing(_ bits: IncompatibleFeatures) -> HeaderPatch {
    .incompatible(incompatible.subtracting(bits))
  }

  /// The change that clears all autoclear bits but some.
  public func keeping(_ bits: AutoclearFeatures) -> HeaderPatch {
    .autoclear(autoclear.intersection(bits))
  }
}

extension RefcountPlan {
  /// The change that makes the planned table the one in force.
  public var headerPatch: HeaderPatch {
    .refcountTable(tableOffset, clusters: UInt32(table.count))
  }
}
