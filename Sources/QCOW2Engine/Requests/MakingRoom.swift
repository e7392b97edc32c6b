import BlockCore
import QCOW2Format
import Synchronization

/// Discards and WRITE_ZEROES on a full host: a thin volume, or a file system without room.
///
/// A freed cluster gives its room back only after a round has made the change durable. On a full host
/// that round may fail, as it writes tables to places that have no room yet. So a request that finds no
/// room lets the host have the data first, in place, and then goes on.
extension Writer {
  /// Applies `change` as ``changeMapping(_:_:worker:)`` does; makes room first where the host has none.
  func changeMakingRoom(
    _ range: Range<UInt64>, _ change: EntryChange, worker: Int
  ) async throws(ImageError) -> [Range<UInt64>] {
    guard mayPunch(before: change) else {
      return try await changeMapping(range, change, worker: worker)
    }
    if durability.flusher.lacksRoom.load(ordering: .relaxed) { _ = try await punchOwn(range) }
    do { return try await changeMapping(range, change, worker: worker) } catch {
      guard error.errno == .noSpace, try await punchOwn(range) else { throw error }
      return try await changeMapping(range, change, worker: worker)
    }
  }

  /// Whether data may go before the entries say so: after a crash, or a failure, the guest may then
  /// read anything after a discard, but only the old data or zeros after WRITE_ZEROES.
  private func mayPunch(before change: EntryChange) -> Bool {
    guard options.discardsToHost, !guestData.isExternal else { return false }
    return change == .discard
      || change == .zero && !storage.file.traits.isBlockDevice && !guestData.isTransformed
  }

  /// Punches the host clusters that are ours alone and whose guest clusters lie wholly in `range`.
  ///
  /// The guest clusters are held meanwhile. A write in place, which holds nothing, may be under way in
  /// one of them: then the guest asked for both at the same time, and either may come last.
  ///
  /// - Returns: whether there were any.
  private func punchOwn(_ range: Range<UInt64>) async throws(ImageError) -> Bool {
    var hasPunched = false
    var next = range.lowerBound
    while next < range.upperBound {
      let part = slices.part(from: GuestOffset(next), length: range.upperBound - next)
      if try await punchOwn(part) { hasPunched = true }
      next += part.length
    }
    return hasPunched
  }

  private func punchOwn(_ part: SlicePart) async throws(ImageError) -> Bool {
    await inFlight.acquire(part.clusters)
    defer { inFlight.release(part.clusters) }
    guard case .at(let table, isOwn: true) = try mapping.tables.usable(part.l1Index) else {
      return false
    }
    let runs = try await mapping.lookAtEntries(part, table: table) { entries in
      self.ownClusters(part, entries)
    }
    for run in runs {
      await storage.punchHole(
        at: geometry.start(of: run.start),
        length: run.count << UInt64(geometry.clusterBits))
    }
    return !runs.isEmpty
  }

  private func ownClusters(_ part: SlicePart, _ entries: SliceEntries) -> [ClusterRun] {
    let lookup = mapping.lookup
    var runs: [ClusterRun] = []
    for index in 0..<entries.count {
      let entry = entries[index]
      guard let host = lookup.ownCluster(entry),
        lookup.isUsable(entry, of: part.clusters.lowerBound + UInt64(index)),
        subclusters(of: part, index).count == rules.subclusters, !lookup.holdsMetadata(host)
      else { continue }
      let cluster = geometry.hostCluster(of: host)
      if let last = runs.last, last.end == cluster {
        runs[runs.count - 1].count += 1
      } else {
        runs.append(ClusterRun(start: cluster, count: 1, isFresh: false))
      }
    }
    return runs
  }
}
