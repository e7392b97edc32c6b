import BlockCore

/// Limits that are QEMU's, not the format's, so that both accept the same images.
public enum FormatLimit {
  /// The largest L1 table in bytes.
  public static let l1Bytes: UInt64 = 32 << 20
  /// The largest refcount table in bytes.
  public static let refcountTableBytes: UInt64 = 8 << 20
  public static let snapshots: UInt32 = 65536
  /// The longest name of a backing file in bytes.
  public static let backingName: UInt64 = 1023
  /// Host offsets end below this.
  public static let hostOffset: UInt64 = 1 << 56
}

extension Header {
  /// Checks every field for a writer, before anything is allocated.
  ///
  /// Unknown incompatible features are refused; known ones are for the caller to judge.
  ///
  /// - Parameter fileLength: The length of the host file in bytes.
  /// - Throws: ``FormatError`` for the first field that is wrong.
  public func validate(fileLength: UInt64) throws(FormatError) {
    try validateForm()
    try validate()
    if let problem = problemForWriting(fileLength: fileLength) { throw problem }
  }

  /// Checks what must hold before a cluster size can be computed.
  public func validateForm() throws(FormatError) {
    guard (9...21).contains(clusterBits) else {
      throw bad("cluster_bits", UInt64(clusterBits), "9 to 21")
    }
    let clusterSize: UInt64 = 1 << UInt64(clusterBits)
    let least = version == 2 ? Header.v2Length : Header.v3Length
    guard (UInt64(least)...clusterSize).contains(UInt64(headerLength)) else {
      throw bad("header_length", UInt64(headerLength), "\(least) to \(clusterSize)")
    }
    guard backingFileOffset <= clusterSize else {
      throw bad("backing_file_offset", backingFileOffset, "at most \(clusterSize)")
    }
    let space = clusterSize - backingFileOffset
    guard backingFileOffset == 0 || UInt64(backingFileSize) <= min(FormatLimit.backingName, space)
    else {
      throw bad(
        "backing_file_size", UInt64(backingFileSize),
        "at most \(FormatLimit.backingName), inside the first cluster")
    }
  }

  /// Checks the features, and the limits and alignments without which no table can be read; not
  /// whether the tables are in the file.
  ///
  /// Call after ``validateForm()``. Limits and strictness are QEMU's.
  public func validate() throws(FormatError) {
    try validateFeatures()
    try validateRefcountTable(geometry)
    try validateL1()
    guard snapshotCount <= FormatLimit.snapshots else {
      throw bad("nb_snapshots", UInt64(snapshotCount), "at most \(FormatLimit.snapshots)")
    }
    try validateOffset(
      "snapshots_offset", snapshotsOffset,
      bytes: UInt64(snapshotCount) * UInt64(SnapshotEntry.fixedLength))
  }

  /// Checks the fields of a header that were taken from an entry of the snapshot table.
  ///
  /// - Throws: ``FormatError`` for the first field that is wrong.
  public func validateSnapshot() throws(FormatError) {
    guard size <= UInt64(Int64.max) else {
      throw bad("disk size of the snapshot", size, "at most 2^63 - 1")
    }
    try validateL1(
      sizeName: "l1_size of the snapshot", offsetName: "l1_table_offset of the snapshot")
    guard l1Size > 0 else { return }
    if let problem = offsetProblem("l1_table_offset of the snapshot", l1TableOffset) {
      throw problem
    }
  }

  /// Why nothing can be read; nil if something may be.
  ///
  /// A file that ends inside the L1 table is no reason: requests that need the missing part fail, and
  /// the others are served.
  public func problemForReading(fileLength: UInt64) -> FormatError? {
    guard l1Size > 0 else { return nil }
    if let problem = offsetProblem("l1_table_offset", l1TableOffset) { return problem }
    let isGone = l1TableOffset >= fileLength
    return isGone
      ? truncation("l1_table_offset", l1TableOffset, UInt64(l1Size) * 8, fileLength) : nil
  }

  /// Whether a file that ends at `fileLength` was cut inside the L1 table, or right before it.
  public func isCutInL1(fileLength: UInt64) -> Bool {
    let end = geometry.clusters(covering: fileLength) << UInt64(clusterBits)
    guard l1Size > 0, l1TableOffset > 0, l1TableOffset <= end else { return false }
    return l1TableOffset + UInt64(l1Size) * 8 > fileLength
  }

  /// Why nothing may be written to the image as it is; nil if the header allows it.
  public func problemForWriting(fileLength: UInt64) -> FormatError? {
    if let problem = problemForReading(fileLength: fileLength) { return problem }
    if let problem = truncation("l1_table_offset", l1TableOffset, UInt64(l1Size) * 8, fileLength) {
      return problem
    }
    guard refcountTableClusters >= 1 else {
      return bad("refcount_table_clusters", 0, "at least 1")
    }
    if snapshotCount > 0, let problem = offsetProblem("snapshots_offset", snapshotsOffset) {
      return problem
    }
    return offsetProblem("refcount_table_offset", refcountTableOffset)
      ?? truncation(
        "refcount_table_offset", refcountTableOffset,
        UInt64(refcountTableClusters) << UInt64(clusterBits), fileLength)
  }

  private func validateFeatures() throws(FormatError) {
    let unknown = incompatible.subtracting(.known)
    guard unknown.isEmpty else { throw .unknownIncompatibleFeatures(unknown.rawValue) }
    guard refcountOrder <= 6 else { throw bad("refcount_order", UInt64(refcountOrder), "0 to 6") }
    guard cryptMethod <= 2 else { throw bad("crypt_method", UInt64(cryptMethod), "0, 1 or 2") }
    let hasType = incompatible.contains(.compressionType)
    guard compressionType == (hasType ? 1 : 0) else {
      throw bad(
        "compression_type", UInt64(compressionType),
        hasType
          ? "1 (zstd) when the compression type bit is set"
          : "0 when the compression type bit is clear")
    }
    guard !incompatible.contains(.extendedL2) || clusterBits >= 14 else {
      throw bad("cluster_bits", UInt64(clusterBits), "at least 14 with extended L2 entries")
    }
  }

  private func validateRefcountTable(_ geometry: ClusterGeometry) throws(FormatError) {
    let bytes = UInt64(refcountTableClusters) << UInt64(clusterBits)
    guard bytes <= FormatLimit.refcountTableBytes else {
      throw bad(
        "refcount_table_clusters", UInt64(refcountTableClusters),
        "at most \(FormatLimit.refcountTableBytes >> UInt64(clusterBits))")
    }
    try validateOffset("refcount_table_offset", refcountTableOffset, bytes: bytes)
  }

  private func validateL1(
    sizeName: FieldName = "l1_size", offsetName: FieldName = "l1_table_offset"
  ) throws(FormatError) {
    guard size <= UInt64(Int64.max) else { throw bad("size", size, "at most 2^63 - 1") }
    guard UInt64(l1Size) * 8 <= FormatLimit.l1Bytes else {
      throw bad(sizeName, UInt64(l1Size), "at most \(FormatLimit.l1Bytes / 8)")
    }
    let needed = geometry.l1EntriesNeeded(forSize: size)
    guard UInt64(l1Size) >= needed else {
      throw bad(sizeName, UInt64(l1Size), "at least \(needed) for the virtual size")
    }
    try validateOffset(offsetName, l1TableOffset, bytes: UInt64(l1Size) * 8)
  }

  private func validateOffset(
    _ name: FieldName, _ offset: UInt64, bytes: UInt64
  ) throws(FormatError) {
    guard offset & geometry.clusterMask == 0 else {
      throw .badOffset(name: name, offset: HostOffset(offset), problem: .unaligned)
    }
    guard offset <= UInt64(Int64.max) - bytes else {  // tables are at most 32 MiB long
      throw .badOffset(name: name, offset: HostOffset(offset), problem: .beyondLimit)
    }
  }

  private func offsetProblem(_ name: FieldName, _ offset: UInt64) -> FormatError? {
    FormatError.place(of: name, HostOffset(offset), geometry)
  }

  private func truncation(
    _ name: FieldName, _ offset: UInt64, _ bytes: UInt64, _ fileLength: UInt64
  ) -> FormatError? {
    guard bytes > 0, bytes > fileLength || offset > fileLength - bytes else { return nil }
    return .truncated(structure: name, needed: offset + bytes, available: fileLength)
  }

  private func bad(_ name: FieldName, _ found: UInt64, _ allowed: String) -> FormatError {
    .badField(name: name, found: found, allowed: allowed)
  }
}
