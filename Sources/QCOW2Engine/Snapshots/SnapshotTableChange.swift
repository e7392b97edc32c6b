import BlockCore
import QCOW2Format

/// A new snapshot table, which takes the place of the one in force.
///
/// The new table goes to new clusters: table | sync | one sector of the header | the old clusters are
/// freed. A crash leaves the old table or the new one, and at worst the clusters of the other leaked.
/// The caller holds ``Image/snapshotting``.
struct SnapshotTableChange: Sendable {
  private let image: Image
  /// The snapshots of the table in force.
  let snapshots: [Snapshot]
  private let old: ClusterRun?
  /// The entries of the new table.
  var edit: SnapshotTableEdit

  /// Reads the table in force; nothing is changed yet.
  init(_ image: Image) async throws(ImageError) {
    self.image = image
    let header = image.header
    let storage = image.reader.storage
    let table = try await SnapshotTable.read(header, storage, isReadOnly: false)
    snapshots = table.snapshots
    let start = HostOffset(header.snapshotsOffset)
    old =
      header.snapshotCount == 0
      ? nil
      : ClusterRun(
        start: image.geometry.hostCluster(of: start),
        count: image.geometry.clusters(covering: max(table.length, 1)), isFresh: false)
    // The table has at most 64 MiB.
    let bytes = try IOBuffer.ofTable(Int(max((table.length + 4095) & ~4095, 4096)))
    if old != nil { try await storage.read(into: bytes, at: start) }
    do throws(FormatError) {
      edit = try SnapshotTableEdit(
        table.snapshots, in: bytes.withBytes { span in (0..<span.count).map { span[$0] } })
    } catch { throw .damaged(error) }
  }

  /// Makes the new table the one in force.
  ///
  /// - Parameters:
  ///   - patches: What else of the header changes in the same sector write.
  ///   - steps: Write what the table leads to.
  /// - Throws: Why not; says whether the header has the new table nevertheless.
  func commit(
    with patches: (Header) -> [HeaderPatch], _ steps: () async throws(ImageError) -> Void = {}
  ) async throws(SnapshotTableFailure) {
    let allocator = image.supply.allocator
    let bytes = edit.bytes
    var new: ClusterRun?
    var place = HostOffset(0)
    do throws(ImageError) {
      guard edit.isWithinLimits else { throw .snapshotTableFull }
      if edit.count > 0 {
        let run = try await allocator.reserveContiguous(
          image.geometry.clusters(covering: UInt64(bytes.count)))
        new = run
        place = image.geometry.start(of: run.start)
        for cluster in run.start..<run.end { image.supply.metadata.tables.insert(cluster) }
      }
      let flip = HeaderPatch.snapshots(place, count: UInt32(clamping: edit.count))
      try await image.durability.headerEditor.commit(
        { .several([flip] + patches($0)) }, after: .round(image.durability.flusher)
      ) { () async throws(ImageError) in
        if new != nil { try await write(bytes, at: place) }
        try await steps()
      } undo: {
        guard let new else { return }
        // First: once the clusters are free, they may be another table's.
        forget(new)
        try? await allocator.unreserve(new)
      }
    } catch {
      let isInForce =
        image.header.snapshotsOffset == place.bytes
        && image.header.snapshotCount == UInt32(clamping: edit.count)
      throw SnapshotTableFailure(error: error, isInForce: isInForce)
    }
    if let old {
      forget(old)
      image.supply.frees.add([old])
    }
    image.durability.noteDirty()
  }

  private func forget(_ run: ClusterRun) {
    for cluster in run.start..<run.end { image.supply.metadata.tables.remove(cluster) }
  }

  private func write(_ bytes: [UInt8], at place: HostOffset) async throws(ImageError) {
    // Whole clusters, so that what follows the table there is zeros.
    let clusters = image.geometry.clusters(covering: UInt64(bytes.count))
    let buffer = try IOBuffer.ofTable(Int(clusters << UInt64(image.geometry.clusterBits)))
    buffer.withMutableBytes { target in
      for index in bytes.indices { target[index] = bytes[index] }
    }
    try await image.reader.storage.write(from: buffer, at: place)
  }
}

/// Why a new snapshot table is not in force, or not known to be durable.
struct SnapshotTableFailure: Error {
  let error: ImageError
  /// The header has it nevertheless: nothing that it needs may be given back.
  let isInForce: Bool
}
