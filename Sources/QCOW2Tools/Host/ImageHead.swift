package import BlockCore
package import QCOW2Format

/// The first cluster of an image, read and judged: what `info` and `check` start from.
///
/// Stricter than the specification nowhere, and laxer than what the engine asks for: features that
/// cannot be attached, tables beyond the end of the file and the like can still be looked at.
package struct ImageHead {
  package let header: Header
  package let extensions: [HeaderExtension]
  /// The first cluster.
  package let cluster: IOBuffer
  package let fileLength: UInt64

  package var geometry: ClusterGeometry { header.geometry }
  /// The virtual size in bytes, in whole sectors, as QEMU sees it.
  package var diskSize: UInt64 { header.size & ~511 }

  /// Reads and checks the header, its extensions and the place of the backing file's name.
  package init(reading bytes: any ImageBytes) throws(ToolError) {
    fileLength = bytes.length
    let start = try bytes.block(at: HostOffset(0), count: 512)
    do throws(FormatError) {
      header = try unsafe Header(parsing: UnsafeRawBufferPointer(start: start.base, count: 512))
      try Self.validateForm(header)
    } catch {
      throw .format(error)
    }
    let clusterSize = Int(1 << UInt64(header.clusterBits))
    cluster = try bytes.block(at: HostOffset(0), count: clusterSize)
    do throws(FormatError) {
      extensions = try Self.extensions(header, cluster)
      try Self.validateFeatures(header)
      try Self.validateTables(header)
    } catch {
      throw .format(error)
    }
  }

  /// What must hold before a cluster size can be computed.
  private static func validateForm(_ header: Header) throws(FormatError) {
    guard (9...21).contains(header.clusterBits) else {
      throw bad("cluster_bits", UInt64(header.clusterBits), "9 to 21")
    }
    let clusterSize: UInt64 = 1 << UInt64(header.clusterBits)
    let least = header.version == 2 ? Header.v2Length : Header.v3Length
    guard (UInt64(least)...UInt64(clusterSize)).contains(UInt64(header.headerLength)) else {
      throw bad("header_length", UInt64(header.headerLength), "\(least) to \(clusterSize)")
    }
    guard header.backingFileOffset <= clusterSize else {
      throw bad("backing_file_offset", header.backingFileOffset, "at most \(clusterSize)")
    }
    guard
      header.backingFileOffset == 0
        || UInt64(header.backingFileSize) <= min(1023, clusterSize - header.backingFileOffset)
    else {
      throw bad(
        "backing_file_size", UInt64(header.backingFileSize),
        "at most 1023, inside the first cluster")
    }
  }

  private static func extensions(
    _ header: Header, _ cluster: IOBuffer
  ) throws(FormatError) -> [HeaderExtension] {
    let end = header.backingFileOffset == 0 ? cluster.count : Int(header.backingFileOffset)
    return try unsafe HeaderExtension.list(
      in: UnsafeRawBufferPointer(start: cluster.base, count: cluster.count),
      from: Int(header.headerLength), to: end)
  }

  private static func validateFeatures(_ header: Header) throws(FormatError) {
    let unknown = header.incompatible.subtracting(.known)
    guard unknown.isEmpty else { throw .unknownIncompatibleFeatures(unknown.rawValue) }
    guard header.refcountOrder <= 6 else {
      throw bad("refcount_order", UInt64(header.refcountOrder), "0 to 6")
    }
    guard header.cryptMethod <= 2 else {
      throw bad("crypt_method", UInt64(header.cryptMethod), "0, 1 or 2")
    }
    let hasType = header.incompatible.contains(.compressionType)
    guard header.compressionType == (hasType ? 1 : 0) else {
      throw bad(
        "compression_type", UInt64(header.compressionType),
        hasType
          ? "1 when the compression type bit is set" : "0 when the compression type bit is clear")
    }
    let hasDataFile = header.incompatible.contains(.externalDataFile)
    guard hasDataFile || !header.autoclear.contains(.rawExternalData) else {
      throw bad("autoclear_features", header.autoclear.rawValue, "bit 1 clear without a data file")
    }
    guard !header.incompatible.contains(.extendedL2) || header.clusterBits >= 14 else {
      throw bad(
        "cluster_bits", UInt64(header.clusterBits), "at least 14 with extended L2 entries")
    }
  }

  /// The limits and alignments without which no table can be read; not whether it is in the file.
  private static func validateTables(_ header: Header) throws(FormatError) {
    let geometry = header.geometry
    let tableBytes = UInt64(header.refcountTableClusters) << UInt64(header.clusterBits)
    guard tableBytes <= FormatLimit.refcountTableBytes else {
      throw bad(
        "refcount_table_clusters", UInt64(header.refcountTableClusters),
        "at most \(FormatLimit.refcountTableBytes >> UInt64(header.clusterBits))")
    }
    try validateOffset(
      "refcount_table_offset", header.refcountTableOffset, bytes: tableBytes, geometry)
    guard UInt64(header.l1Size) * 8 <= FormatLimit.l1Bytes else {
      throw bad("l1_size", UInt64(header.l1Size), "at most \(FormatLimit.l1Bytes / 8)")
    }
    let needed = geometry.l1EntriesNeeded(forSize: header.size)
    guard header.size <= UInt64(Int64.max), UInt64(header.l1Size) >= needed else {
      throw bad("l1_size", UInt64(header.l1Size), "at least \(needed) for the virtual size")
    }
    try validateOffset(
      "l1_table_offset", header.l1TableOffset, bytes: UInt64(header.l1Size) * 8, geometry)
    guard header.snapshotCount <= FormatLimit.snapshots else {
      throw bad(
        "nb_snapshots", UInt64(header.snapshotCount), "at most \(FormatLimit.snapshots)")
    }
    try validateOffset(
      "snapshots_offset", header.snapshotsOffset,
      bytes: UInt64(header.snapshotCount) * UInt64(SnapshotEntry.fixedLength), geometry)
  }

  private static func validateOffset(
    _ name: FieldName, _ offset: UInt64, bytes: UInt64, _ geometry: ClusterGeometry
  ) throws(FormatError) {
    guard offset & geometry.clusterMask == 0 else {
      throw .badOffset(name: name, offset: HostOffset(offset), problem: .unaligned)
    }
    guard offset <= UInt64(Int64.max) - bytes else {  // tables are at most 32 MiB long
      throw .badOffset(name: name, offset: HostOffset(offset), problem: .beyondLimit)
    }
  }

  private static func bad(
    _ name: FieldName, _ found: UInt64, _ allowed: String
  ) -> FormatError {
    .badField(name: name, found: found, allowed: allowed)
  }
}

extension ImageHead {
  /// The data of the first extension of a kind; nil if the image has none.
  package func extensionData(_ kind: HeaderExtension.Kind) -> [UInt8]? {
    guard let found = extensions.first(where: { $0.kind == kind }) else { return nil }
    return cluster.copy(at: found.offset, count: found.length)
  }

  /// The text of the first extension of a kind, up to a zero byte.
  package func extensionText(_ kind: HeaderExtension.Kind) -> String? {
    extensionData(kind).map { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
  }

  /// The backing file's name as it is written in the image; nil if it has no backing file.
  package var backingFile: String? {
    guard header.backingFileOffset != 0, header.backingFileSize > 0 else { return nil }
    return cluster.text(at: Int(header.backingFileOffset), count: Int(header.backingFileSize))
  }

  /// The bitmaps extension, if it is there and the autoclear bit says that it can be trusted.
  package var bitmaps: Result<BitmapsExtension, FormatError>? {
    guard header.autoclear.contains(.bitmaps), let data = extensionData(.bitmaps) else {
      return nil
    }
    return Result { () throws(FormatError) in
      let found = try BitmapsExtension(parsing: data)
      try found.validate(geometry)
      return found
    }
  }
}
