import BlockCore
import QCOW2Format

/// The internal snapshots of an image, as the host file has them.
///
/// Whatever the table holds, unknown extra data included, stays: see ``SnapshotTableChange``.
struct SnapshotTable: Sendable {
  let snapshots: [Snapshot]
  /// The bytes from the start of the first to the end of the last entry.
  let length: UInt64

  /// Reads the table while the image is opened, if it has one and someone needs it: a writer, to keep
  /// off it, or whoever attaches a snapshot.
  static func read(
    _ header: Header, _ storage: ImageStorage, _ options: ImageOptions
  ) async throws(ImageError) -> SnapshotTable {
    guard !options.readOnly || options.snapshot != nil else {
      return SnapshotTable(snapshots: [], length: 0)
    }
    return try await read(header, storage, isReadOnly: options.readOnly)
  }

  /// Reads the table.
  ///
  /// - Throws: ``ImageError/damaged(_:)`` where a limit is exceeded; for a reader
  ///   ``ImageError/format(_:)``.
  static func read(
    _ header: Header, _ storage: ImageStorage, isReadOnly: Bool
  ) async throws(ImageError) -> SnapshotTable {
    guard header.snapshotCount > 0 else { return SnapshotTable(snapshots: [], length: 0) }
    var window = SnapshotWindow(start: HostOffset(header.snapshotsOffset), storage: storage)
    var table = SnapshotTableReader(count: header.snapshotCount)
    while let wanted = table.wanted {
      try await window.move(to: wanted)
      do throws(FormatError) { try window.give(wanted, to: &table) } catch {
        throw isReadOnly ? ImageError.format(error) : .damaged(error)
      }
    }
    return SnapshotTable(snapshots: table.snapshots, length: table.length)
  }

  /// The header to go by: with a selector, that of the disk as it was when the snapshot was taken.
  ///
  /// - Throws: ``ImageError/noSuchSnapshot(_:existing:)``; ``ImageError/snapshotWithDataFile``;
  ///   ``ImageError/format(_:)`` if its L1 table is impossible or too short for its disk.
  func select(
    _ selector: SnapshotSelector?, in header: Header
  ) throws(ImageError) -> Header {
    guard let selector else { return header }
    // The data file has only one state, and QEMU takes no snapshots of such images.
    if header.incompatible.contains(.externalDataFile) { throw .snapshotWithDataFile }
    guard let snapshot = selector.first(in: snapshots) else {
      throw .noSuchSnapshot(selector, existing: snapshots)
    }
    var selected = header
    selected.l1TableOffset = snapshot.entry.l1Table.bytes
    selected.l1Size = snapshot.entry.l1Size
    selected.size = snapshot.entry.diskSize ?? header.size
    do { try selected.validateSnapshot() } catch { throw .format(error) }
    return selected
  }

  /// Adds the snapshots' L1 tables to what must not be written as data.
  ///
  /// Tables that no check would follow (unaligned, too long) are left out. The work is bounded by
  /// the size of the file.
  func addL1Tables(
    to map: MetadataMap, _ geometry: ClusterGeometry, fileLength: UInt64
  ) throws(ImageError) {
    var bytes: UInt64 = 0
    for (index, snapshot) in snapshots.enumerated() {
      let entry = snapshot.entry
      let length = entry.l1Length
      guard length > 0, !entry.isL1TooLong,
        entry.l1Faults(geometry, fileLength: fileLength).isEmpty
      else { continue }
      bytes += length
      guard bytes <= fileLength + geometry.clusterSize else {
        throw .damaged(
          .badField(
            name: "length of the L1 tables of all snapshots", found: bytes,
            allowed: "at most the length of the file, \(fileLength)"))
      }
      let first = geometry.hostCluster(of: entry.l1Table)
      for cluster in first..<(first + geometry.clusters(covering: length)) {
        guard !map.fixedContains(cluster), map.tables.insert(cluster) else {
          throw .damaged(
            .badEntry(
              name: "snapshot table entry", index: UInt64(index), value: entry.l1Table.bytes,
              problem: .overlapsMetadata))
        }
      }
    }
  }
}

/// The part of the table that is in memory: so that short entries cost no read each.
private struct SnapshotWindow {
  private let start: HostOffset
  private let storage: ImageStorage
  /// Room for the longest part, wherever it starts.
  private let buffer = IOBuffer(count: (1 << 17) + 4096)
  /// The position in the table of the buffer's first byte; nil while it is empty.
  private var position: UInt64?

  init(start: HostOffset, storage: ImageStorage) {
    self.start = start
    self.storage = storage
  }

  mutating func move(to part: SnapshotTableReader.Part) async throws(ImageError) {
    if let position, part.position >= position,
      part.position + UInt64(part.count) <= position + UInt64(buffer.count)
    {
      return
    }
    // The table starts at a cluster, so this is aligned for O_DIRECT.
    let aligned = part.position & ~4095
    position = nil
    try await storage.read(into: buffer, at: start + aligned)
    position = aligned
  }

  /// Gives the bytes of a part that ``move(to:)`` was called for.
  func give(
    _ part: SnapshotTableReader.Part, to table: inout SnapshotTableReader
  ) throws(FormatError) {
    let first = Int(part.position - (position ?? part.position))
    try buffer.withBytes { bytes throws(FormatError) in
      try table.take(bytes.extracting(first..<(first + part.count)))
    }
  }
}
