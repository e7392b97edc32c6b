package import BlockCore
import QCOW2Format

/// How much of the host a guest range gets before anybody writes it.
package enum PlacesInAdvance: Sendable {
  /// Host clusters. They are holes of the host file.
  case mapped
  /// Host clusters, and the host's storage for them.
  case stored
  /// Host clusters with zeros written into them.
  case written
}

extension Image {
  /// Gives the start of a guest range host clusters; the range reads as zeros before and afterwards.
  ///
  /// Call again with the rest of the range. Nobody may write the range meanwhile: a device that shows the
  /// disk does not know it yet. Durable with the next flush; a crash leaves zeros, in places or without.
  /// Where data is enciphered, zeros are written in any case: what an empty cluster deciphers to is not
  /// zeros. Persistent bitmaps do not follow, since nothing that a guest reads has changed.
  ///
  /// - Parameters:
  ///   - range: Inside the disk; starts at a cluster.
  ///   - places: How much it gets.
  ///   - zeros: Plain memory to write from, of 512 bytes or a multiple.
  ///   - job: The caller's, with no request in flight.
  /// - Returns: How many bytes of the range have places now, 1 at least.
  /// - Throws: ``ImageError/noSpace`` and others; the part that has its places keeps them.
  package func preallocate(
    _ range: Range<UInt64>, _ places: PlacesInAdvance, zeros: DataBuffer, in job: JobSlot
  ) async throws(ImageError) -> UInt64 {
    if options.readOnly { throw .readOnly }
    await admission.enter(at: job.slot)
    defer { admission.leave(at: job.slot) }
    try health.requireWrites()
    guard !range.isEmpty, range.upperBound <= size else { throw .badRequest }
    let writer = writer
    if places == .written || writer.guestData.isTransformed {
      let count = min(UInt64(range.count), UInt64(zeros.count))
      try await writer.write(
        BlockRequest(
          .write, offset: GuestOffset(range.lowerBound), length: count,
          data: zeros.slice(0, Int(count))), worker: job.worker)
      return count
    }
    return try await writer.provideClusters(
      range, hasStorage: places == .stored, worker: job.worker)
  }
}

extension Writer {
  /// Links clusters of zeros to the first guest clusters of a range that have none.
  ///
  /// - Returns: The bytes from the start of the range that have clusters now, 1 at least.
  fileprivate func provideClusters(
    _ range: Range<UInt64>, hasStorage: Bool, worker: Int
  ) async throws(ImageError) -> UInt64 {
    let length = UInt64(range.count)
    if guestData.isRaw {
      // Mapped already, when the data file grew.
      let start = HostOffset(range.lowerBound)
      if hasStorage { try await guestData.storage.allocateZeroes(at: start, length: length) }
      return length
    }
    let part = slices.part(from: GuestOffset(range.lowerBound), length: length)
    await inFlight.acquire(part.clusters)
    defer { inFlight.release(part.clusters) }
    let table = try await tables.writableTable(part.l1Index, worker: worker)
    try await tables.provideStorage(part.l1Index)
    let rules = rules
    let empty = try await mapping.withEntries(part, table: table) { entries in
      var first = 0
      while first < entries.count && !rules.hasNoPlace(entries[first]) { first += 1 }
      var end = first
      while end < entries.count && rules.hasNoPlace(entries[end]) { end += 1 }
      return first..<end
    }
    if empty.isEmpty { return part.length }
    let skipped = UInt64(empty.lowerBound) << UInt64(geometry.clusterBits)
    let rest = slices.part(
      from: part.start + skipped,
      length: min(
        part.length - skipped, UInt64(empty.count) << UInt64(geometry.clusterBits)))
    let run = try await takeClusters(rest, upTo: UInt64(empty.count), worker: worker)
    do { try await linkZeros(run, rest, table, hasStorage: hasStorage) } catch {
      if !guestData.isExternal { frees.add([run]) }
      throw error
    }
    return min(part.length, skipped + run.count << UInt64(geometry.clusterBits))
  }

  private func linkZeros(
    _ run: ClusterRun, _ part: SlicePart, _ table: HostOffset, hasStorage: Bool
  ) async throws(ImageError) {
    let start = geometry.start(of: run.start)
    try await makeZeros(
      at: start, length: run.count << UInt64(geometry.clusterBits),
      areZeros: run.isFresh && !guestData.isExternal, hasStorage: hasStorage)
    let lookup = mapping.lookup
    try await mapping.withEntries(part, table: table) { entries in
      // No entry had a cluster: nothing is released.
      var released: [ClusterRun] = []
      for index in 0..<min(entries.count, Int(run.count)) {
        let host = lookup.rules.geometry.start(of: run.start + UInt64(index))
        entries.link(
          index, to: lookup.rules.entry(host: host, allocated: .max, zero: 0), lookup,
          released: &released)
      }
    }
    durability.noteDirty()
  }

  /// Makes host clusters that nothing points at zeros, with the host's storage or without.
  private func makeZeros(
    at start: HostOffset, length: UInt64, areZeros: Bool, hasStorage: Bool
  ) async throws(ImageError) {
    let storage = guestData.storage
    switch (areZeros, hasStorage) {
    case (true, true):
      if try await !storage.allocateHoles(at: start, length: length) {
        try await storage.fillHoles(at: start, length: length)
      }
    case (true, false): await storage.punchHole(at: start, length: length)
    case (false, true): try await storage.allocateZeroes(at: start, length: length)
    case (false, false):
      try await storage.writeZeroes(at: start, length: length)
      // The hint comes last: what cannot be a hole keeps its zeros.
      if !storage.file.traits.isBlockDevice {
        await storage.punchHole(at: start, length: length)
      }
    }
  }
}

extension EntryRules {
  /// Whether an entry leads to no host cluster.
  fileprivate func hasNoPlace(_ entry: ClusterEntry) -> Bool {
    hostCluster(entry) == nil && entry.descriptor.raw & EntryBits.compressed == 0
  }
}
