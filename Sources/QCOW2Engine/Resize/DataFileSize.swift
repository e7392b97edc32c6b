import BlockCore
import QCOW2Format

/// The external data file when the disk's size changes; does nothing for images without one.
extension Writer {
  /// Makes the data file long enough; what is added to a raw one reads as zeros there, too.
  ///
  /// Durable with the next flush.
  func growDataFile(
    from old: UInt64, to size: UInt64, worker: Int
  ) async throws(ImageError) {
    guard guestData.isExternal else { return }
    let file = guestData.storage
    if file.file.traits.isBlockDevice {
      guard try await file.length() >= size else { throw .noSpace }
      if guestData.isRaw { try await zeroRaw(old..<size, releases: false) }
    } else if guestData.isRaw {
      // Whatever lies behind the disk goes; what comes in its place is zeros.
      try await file.setLength(old)
      try await file.setLength(size)
    } else if try await file.length() < size {
      try await file.setLength(size)
    }
    if guestData.isRaw { try await mapOneToOne(old..<size, worker: worker) }
  }

  /// Cuts the data file at the new end of the disk.
  func cutDataFile(to size: UInt64) async throws(ImageError) {
    guard guestData.isExternal, !guestData.storage.file.traits.isBlockDevice,
      try await guestData.storage.length() > size
    else { return }
    try await guestData.storage.setLength(size)
  }

  /// Maps guest clusters of a raw data file: with or without the tables, it reads the same.
  private func mapOneToOne(_ range: Range<UInt64>, worker: Int) async throws(ImageError) {
    let mask = geometry.clusterMask
    var next = (range.lowerBound + mask) & ~mask
    let end = (range.upperBound + mask) & ~mask
    while next < end {
      let part = slices.part(from: GuestOffset(next), length: end - next)
      await inFlight.acquire(part.clusters)
      defer { inFlight.release(part.clusters) }
      let table = try await tables.writableTable(part.l1Index, worker: worker)
      let lookup = mapping.lookup
      try await mapping.withEntries(part, table: table) { entries in
        // Clusters of a data file have no refcounts: nothing is released.
        var released: [ClusterRun] = []
        for index in 0..<entries.count {
          let cluster = part.clusters.lowerBound + UInt64(index)
          let new = lookup.rules.entry(
            host: lookup.rules.geometry.start(of: HostCluster(cluster.number)), allocated: .max,
            zero: 0)
          entries.link(index, to: new, lookup, released: &released)
        }
      }
      durability.noteDirty()
      next += part.length
    }
  }
}
