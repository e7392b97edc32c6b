import BlockCore

/// Limits that are QEMU's, not the format's, so that both accept the same images.
public enum FormatLimit {
  /// The largest L1 table in bytes.
  public static let l1Bytes: UInt64 = 32 << 20
  /// The largest refcount table in bytes.
  public static let refcountTableBytes: UInt64 = 8 << 20
  public static let snapshots: UInt32 = 65536
  /// Host offsets end below this.
  public static let hostOffset: UInt64 = 1 << 56
}

extension Header {
  /// Checks every field against the specification and ``FormatLimit``, before anything is
  /// allocated.
  ///
  /// Unknown incompatible features are refused here; known ones are for the caller to judge.
  ///
  /// - Parameter fileLength: The length of the host file in bytes.
  /// - Throws: ``FormatError`` for the first field that is wrong.
  public func validate(fileLength: UInt64) throws(FormatError) {
    try validateSizes()
    try validateFeatures()
    let geometry = self.geometry
    try validateBackingName(geometry)
    try validateL1(geometry, fileLength)
    try validateRefcountTable(geometry, fileLength)
    try validateSnapshotTable(geometry)
  }

  /// Checks the fields of a header that were taken from an entry of the snapshot table.
  ///
  /// - Throws: ``FormatError`` for the first field that is wrong.
  public func validateSnapshot(fileLength: UInt64) throws(FormatError) {
    guard size <= UInt64(Int64.max) else {
      throw .badField(name: "disk size of the snapshot", found: size, allowed: "at most 2^63 - 1")
    }
    try validateL1(
      geometry, fileLength, sizeName: "l1_size of the snapshot",
      offsetName: "l1_table_offset of the snapshot")
  }

  private func validateSizes() throws(FormatError) {
    guard (9...21).contains(clusterBits) else {
      throw .badField(name: "cluster_bits", found: UInt64(clusterBits), allowed: "9 to 21")
    }
    guard refcountOrder <= 6 else {
      throw .badField(name: "refcount_order", found: UInt64(refcountOrder), allowed: "0 to 6")
    }
    guard version == 2 || (headerLength >= Self.v3Length && headerLength % 8 == 0) else {
      throw .badField(
        name: "header_length", found: UInt64(headerLength),
        allowed: "a multiple of 8, at least 104")
    }
    guard UInt64(headerLength) <= 1 << UInt64(clusterBits) else {
      throw .badField(
        name: "header_length", found: UInt64(headerLength), allowed: "at most one cluster")
    }
    guard cryptMethod <= 2 else {
      throw .badField(name: "crypt_method", found: UInt64(cryptMethod), allowed: "0, 1 or 2")
    }
    guard size <= UInt64(Int64.max) else {
      throw .badField(name: "size", found: size, allowed: "at most 2^63 - 1")
    }
  }

  private func validateFeatures() throws(FormatError) {
    let unknown = incompatible.subtracting(.known)
    guard unknown.isEmpty else { throw .unknownIncompatibleFeatures(unknown.rawValue) }
    if incompatible.contains(.compressionType) {
      guard compressionType == 1 else {
        throw .badField(
          name: "compression_type", found: UInt64(compressionType),
          allowed: "1 (zstd) when the compression type bit is set")
      }
    } else if compressionType != 0 {
      throw .badField(
        name: "compression_type", found: UInt64(compressionType),
        allowed: "0 when the compression type bit is clear")
    }
    if incompatible.contains(.extendedL2) && clusterBits < 14 {
      throw .badField(
        name: "cluster_bits", found: UInt64(clusterBits),
        allowed: "at least 14 with extended L2 entries")
    }
  }

  private func validateBackingName(_ geometry: ClusterGeometry) throws(FormatError) {
    guard backingFileOffset != 0 else { return }
    guard backingFileSize <= 1023 else {
      throw .badField(
        name: "backing_file_size", found: UInt64(backingFileSize), allowed: "at most 1023")
    }
    guard backingFileOffset <= geometry.clusterSize,
      backingFileOffset + UInt64(backingFileSize) <= geometry.clusterSize
    else {
      throw .badField(
        name: "backing_file_offset", found: backingFileOffset, allowed: "inside the first cluster")
    }
  }

  private func validateL1(
    _ geometry: ClusterGeometry, _ fileLength: UInt64, sizeName: FieldName = "l1_size",
    offsetName: FieldName = "l1_table_offset"
  ) throws(FormatError) {
    guard UInt64(l1Size) * 8 <= FormatLimit.l1Bytes else {
      throw .badField(
        name: sizeName, found: UInt64(l1Size), allowed: "at most \(FormatLimit.l1Bytes / 8)")
    }
    guard UInt64(l1Size) >= geometry.l1EntriesNeeded(forSize: size) else {
      throw .badField(
        name: sizeName, found: UInt64(l1Size),
        allowed: "at least \(geometry.l1EntriesNeeded(forSize: size)) for the virtual size")
    }
    guard l1Size > 0 else { return }
    try validateTable(
      offsetName, l1TableOffset, bytes: UInt64(l1Size) * 8, geometry, fileLength)
  }

  private func validateRefcountTable(
    _ geometry: ClusterGeometry, _ fileLength: UInt64
  ) throws(FormatError) {
    let allowed = FormatLimit.refcountTableBytes >> UInt64(clusterBits)
    guard refcountTableClusters >= 1, UInt64(refcountTableClusters) <= max(allowed, 1) else {
      throw .badField(
        name: "refcount_table_clusters", found: UInt64(refcountTableClusters),
        allowed: "1 to \(max(allowed, 1))")
    }
    try validateTable(
      "refcount_table_offset", refcountTableOffset,
      bytes: UInt64(refcountTableClusters) << UInt64(clusterBits), geometry, fileLength)
  }

  private func validateSnapshotTable(_ geometry: ClusterGeometry) throws(FormatError) {
    guard snapshotCount <= FormatLimit.snapshots else {
      throw .badField(
        name: "nb_snapshots", found: UInt64(snapshotCount),
        allowed: "at most \(FormatLimit.snapshots)")
    }
    guard snapshotCount > 0 else { return }
    try validateOffset("snapshots_offset", snapshotsOffset, geometry)
  }

  private func validateTable(
    _ name: FieldName, _ offset: UInt64, bytes: UInt64, _ geometry: ClusterGeometry,
    _ fileLength: UInt64
  ) throws(FormatError) {
    try validateOffset(name, offset, geometry)
    guard bytes <= fileLength, offset <= fileLength - bytes else {
      throw .truncated(structure: name, needed: offset + bytes, available: fileLength)
    }
  }

  private func validateOffset(
    _ name: FieldName, _ offset: UInt64, _ geometry: ClusterGeometry
  ) throws(FormatError) {
    let problem: OffsetProblem? =
      offset == 0
      ? .zero
      : offset & geometry.clusterMask != 0
        ? .unaligned : offset >= FormatLimit.hostOffset ? .beyondLimit : nil
    if let problem {
      throw .badOffset(name: name, offset: HostOffset(offset), problem: problem)
    }
  }
}
