import BlockCore
import QCOW2Format

extension Writer {
  /// WRITE: in place where the cluster is ours alone, else into new host clusters.
  func write(_ request: BlockRequest, worker: Int) async throws(ImageError) {
    var done: UInt64 = 0
    while done < request.length {
      let part = slices.part(from: request.offset + done, length: request.length - done)
      done += try await writePart(
        part, request.data, at: Int(done), compresses: request.compresses, worker: worker)
    }
  }

  /// Writes the start of `part` from `data` at `dataOffset` on.
  ///
  /// - Returns: the bytes written, at least 1.
  private func writePart(
    _ part: SlicePart, _ data: DataBuffer, at dataOffset: Int, compresses: Bool, worker: Int
  ) async throws(ImageError) -> UInt64 {
    await inFlight.acquire(part.clusters)
    defer { inFlight.release(part.clusters) }
    let data = data.slice(dataOffset, data.count - dataOffset)
    guard options.compressesWrites || compresses, isCompressible(part) else {
      return try await writeHeld(part, data, worker: worker)
    }
    if try await writeCompressed(part, data, worker: worker) { return geometry.clusterSize }
    // Only this cluster: the ones behind it may get smaller.
    let cluster = slices.part(from: part.start, length: geometry.clusterSize)
    return try await writeHeld(cluster, data, worker: worker)
  }

  /// Writes the start of `part`, whose clusters the caller holds in ``inFlight``, from `data`.
  ///
  /// Allocate → account → write data → publish → release (docs/design.md, section 4, rule 1): an error
  /// before the publish leaves the old mapping intact.
  ///
  /// - Returns: the bytes written, at least 1.
  func writeHeld(
    _ part: SlicePart, _ data: DataBuffer, worker: Int
  ) async throws(ImageError) -> UInt64 {
    let table = try await tables.writableTable(part.l1Index, worker: worker)
    let lookup = mapping.lookup
    let target = try await mapping.withEntries(part, table: table) { entries in
      lookup.target(part, entries)
    }
    switch target {
    case .invalid(let entry): throw mapping.badEntry(entry, cluster: part.clusters.lowerBound)
    case .metadata(let host): throw .overlapsMetadata(cluster: geometry.hostCluster(of: host))
    case .inPlace(let host, let length):
      try await writeInPlace(data.slice(0, Int(length)), at: host, guest: part.start)
      return length
    case .fill(let host, let old):
      let run = ClusterRun(start: geometry.hostCluster(of: host), count: 1, isFresh: false)
      let fill = ClusterFill(part, run, first: old, last: old, geometry, keepsHost: true)
      try await write(fill, data, worker: worker)
      try await publish(fill, table)
      return fill.length
    case .allocate(let clusters, let first, let last):
      if try await regain(part, table) { return try await writeHeld(part, data, worker: worker) }
      return try await allocate(
        part, upTo: clusters, first, last, table, data, worker: worker)
    }
  }

  private func writeInPlace(
    _ data: DataBuffer, at host: HostOffset, guest: GuestOffset
  ) async throws(ImageError) {
    do { try await guestData.write(from: data, at: host, guest: guest) } catch {
      throw error.errno == .noSpace ? .noRoomInPlace(error) : error
    }
    durability.health.noteSpaceFound(by: .inPlace)
  }

  private func allocate(
    _ part: SlicePart, upTo clusters: Int, _ first: ClusterEntry, _ last: ClusterEntry,
    _ table: HostOffset, _ data: DataBuffer, worker: Int
  ) async throws(ImageError) -> UInt64 {
    try await tables.provideStorage(part.l1Index)
    let run = try await takeClusters(part, upTo: UInt64(clusters), worker: worker)
    let fill = ClusterFill(part, run, first: first, last: last, geometry, keepsHost: false)
    do {
      try await write(fill, data, worker: worker)
      try await publish(fill, table)
    } catch {
      if !guestData.isExternal { frees.add([run]) }
      throw error
    }
    return fill.length
  }

  /// New host clusters: in the external data file always those at the guest's own offset, as QEMU
  /// does and as a raw data file needs.
  func takeClusters(
    _ part: SlicePart, upTo wanted: UInt64, worker: Int
  ) async throws(ImageError) -> ClusterRun {
    if guestData.isExternal {
      return ClusterRun(
        start: HostCluster(part.clusters.lowerBound.number), count: wanted, isFresh: false)
    }
    return try await supply.arenas.take(upTo: wanted, worker: worker)
  }
}
