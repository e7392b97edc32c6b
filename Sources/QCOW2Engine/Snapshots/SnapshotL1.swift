import BlockCore
import QCOW2Format

/// The L1 table of a snapshot, which is read as a whole and never changed.
extension Image {
  /// The entries of a snapshot's L1 table, all of which can be followed.
  ///
  /// - Throws: ``ImageError/brokenSnapshot(id:_:)`` for a table or an entry that breaks the format.
  func l1Table(of snapshot: Snapshot) async throws(ImageError) -> [L1Entry] {
    let storage = reader.storage
    let fileLength = try await storage.length()
    let selected: Header
    do throws(ImageError) {
      selected = try SnapshotTable(snapshots: [snapshot], length: 0).select(
        .id(snapshot.id), in: header)
    } catch { throw Self.broken(snapshot, error) }
    let count = Int(selected.l1Size)
    if count == 0 { return [] }
    let buffer = try IOBuffer.ofTable((count * 8 + 511) & ~511)
    defer { withExtendedLifetime(buffer) {} }
    try await storage.read(into: buffer, at: HostOffset(selected.l1TableOffset))
    var entries: [L1Entry] = []
    entries.reserveCapacity(count)
    for index in 0..<count {
      let entry = unsafe L1Entry(raw: buffer.base.be64(index * 8))
      do throws(ImageError) {
        try Self.requireUsable(entry, index: index, geometry, fileLength: fileLength)
      } catch { throw Self.broken(snapshot, error) }
      entries.append(entry.copied(false))
    }
    return entries
  }

  private static func broken(_ snapshot: Snapshot, _ error: ImageError) -> ImageError {
    switch error {
    case .format(let problem), .damaged(let problem): .brokenSnapshot(id: snapshot.id, problem)
    default: error
    }
  }

  /// The host clusters of a snapshot's L1 table; nil if it has no entries.
  func l1Clusters(of snapshot: Snapshot) -> ClusterRun? {
    let entry = snapshot.entry
    if entry.l1Size == 0 { return nil }
    return ClusterRun(
      start: geometry.hostCluster(of: entry.l1Table),
      count: geometry.clusters(covering: entry.l1Length), isFresh: false)
  }

  /// A table of L1 entries in whole clusters, zeros behind the entries there are.
  static func l1Bytes(
    _ entries: [L1Entry], count: UInt64, _ geometry: ClusterGeometry
  ) throws(ImageError) -> IOBuffer {
    let clusters = geometry.clusters(covering: max(count, UInt64(entries.count)) * 8)
    let buffer = try IOBuffer.ofTable(Int(clusters << UInt64(geometry.clusterBits)))
    for (index, entry) in entries.enumerated() {
      unsafe buffer.base.storeBE64(entry.raw, index * 8)
    }
    return buffer
  }
}
