import BlockCore
import QCOW2Format

// What the tracker writes, in which order; all with its mutex held.

extension ChangeTracker {
  /// Bits that are set once the round's sync has returned.
  private typealias Setting = (bitmap: TrackedBitmap, bits: Range<UInt64>)

  /// An entry that has no cluster yet, and the bits to set that lie in it.
  private struct Missing {
    let bitmap: TrackedBitmap
    let entry: Int
    let added: [Range<UInt64>]
  }

  /// What one round does to one bitmap.
  private struct BitmapRound {
    let bitmap: TrackedBitmap
    /// All bits that the round sets.
    let added: [Range<UInt64>]
    var writes: [(part: TrackedBitmap.Part, cluster: HostOffset)] = []
    var missing: [Missing] = []
    var settings: [Setting] = []
  }

  /// Sets all bits of `ranges` durably, as far as that needs no new cluster; bits that have been
  /// asked for in any case.
  ///
  ///     clusters for "all zeros": refcount, contents | their entries, bits of old clusters | done
  ///
  /// At each `|`, and in between, a crash leaves bitmaps that have all bits they had before.
  func setDurably(_ ranges: [Range<UInt64>]) async throws(ImageError) {
    mutex.assertHeld()
    let rounds = bitmaps.map { plan($0, ranges) }
    var settings = rounds.flatMap(\.settings)
    settings += try await provideClusters(rounds.flatMap(\.missing))
    for round in rounds {
      for write in round.writes {
        try await round.bitmap.writeBits(
          write.part, adding: round.added, in: write.cluster, storage)
      }
      try await round.bitmap.writeTable(storage)
    }
    try await storage.sync()
    for setting in settings { setting.bitmap.bits.becameDurable(setting.bits) }
  }

  private func plan(_ bitmap: TrackedBitmap, _ ranges: [Range<UInt64>]) -> BitmapRound {
    let added = ranges.map { bitmap.bits.bits($0) }
    var round = BitmapRound(bitmap: bitmap, added: added)
    for part in added.flatMap({ bitmap.parts($0) }) where !bitmap.bits.isDurable(part.bits) {
      let entry = bitmap.entry(part.entry)
      if let cluster = entry.cluster {
        add(part, cluster, to: &round)
        round.settings.append((bitmap, part.bits))
      } else if entry.isAllOnes {
        round.settings.append((bitmap, bitmap.allBits(part.entry)))
      } else if bitmap.bits.exactBits(of: part.bits).any,
        round.missing.last?.entry != part.entry
      {
        let all = bitmap.allBits(part.entry)
        let inside = added.map { $0.clamped(to: all) }.filter { !$0.isEmpty }
        round.missing.append(Missing(bitmap: bitmap, entry: part.entry, added: inside))
      }
    }
    return round
  }

  /// Each block is written once, with all that is to be set in it.
  private func add(
    _ part: TrackedBitmap.Part, _ cluster: HostOffset, to round: inout BitmapRound
  ) {
    if let last = round.writes.last, round.bitmap.areNeighbours(last.part, part) {
      let end = max(last.part.bits.upperBound, part.bits.upperBound)
      round.writes[round.writes.count - 1].part = TrackedBitmap.Part(
        entry: part.entry, bits: last.part.bits.lowerBound..<end)
    } else {
      round.writes.append((part, cluster))
    }
  }

  /// Changes entries that say "all zeros" so that they have the bits wanted.
  private func provideClusters(_ missing: [Missing]) async throws(ImageError) -> [Setting] {
    var settings: [Setting] = []
    var clusters: [(missing: Missing, run: ClusterRun)] = []
    do throws(ImageError) {
      for wanted in missing {
        let bitmap = wanted.bitmap
        let all = bitmap.allBits(wanted.entry)
        if bitmap.bits.exactBits(of: all).all {
          bitmap.flatten(wanted.entry, isExact: true)
          settings.append((bitmap, all))
        } else if let run = try await newCluster(bitmap, wanted.entry, wanted.added) {
          clusters.append((wanted, run))
          settings += wanted.added.map { (bitmap, $0) }
        } else {
          bitmap.flatten(wanted.entry, isExact: false)
          settings.append((bitmap, all))
        }
      }
      if !clusters.isEmpty { try await flusher.flush() }
    } catch {
      for cluster in clusters { giveUp(cluster.run) }
      throw error
    }
    for cluster in clusters {
      cluster.missing.bitmap.link(cluster.missing.entry, to: cluster.run.start)
    }
    return settings
  }

  /// A cluster with the bits of an entry, not yet durable; nil if there is no space for one.
  private func newCluster(
    _ bitmap: TrackedBitmap, _ entry: Int, _ added: [Range<UInt64>]
  ) async throws(ImageError) -> ClusterRun? {
    guard let run = try await reserve() else { return nil }
    do {
      try await bitmap.writeCluster(run.start, for: entry, adding: added, storage)
      return run
    } catch {
      giveUp(run)
      if error.errno == .noSpace { return nil }
      throw error
    }
  }

  /// One cluster, protected from being written as data; nil if there is none.
  func reserve() async throws(ImageError) -> ClusterRun? {
    do {
      let run = try await allocator.reserve(upTo: 1)
      metadata.tables.insert(run.start)
      return run
    } catch {
      if error.errno == .noSpace { return nil }
      throw error
    }
  }

  /// Lets go of a cluster that no entry points at.
  func giveUp(_ run: ClusterRun) {
    metadata.tables.remove(run.start)
    frees.add([run])
  }

  // MARK: Back to the exact bits

  /// Brings up to `limit` blocks back to the exact bits.
  ///
  /// Nothing is synced here: until it is, the host file has the old bits or the new ones, and the
  /// old ones are a superset. A later ``setDurably(_:)`` comes after these writes, and syncs both.
  ///
  /// - Returns: whether any block was written, and there may be more.
  func writeExact(atMost limit: Int) async throws(ImageError) -> Bool {
    mutex.assertHeld()
    var done = 0
    for bitmap in bitmaps {
      for entry in bitmap.flattened.sorted() { try await unflatten(bitmap, entry) }
      done += try await bitmap.writeExact(atMost: limit - done, storage)
      try await bitmap.writeTable(storage)
      if done >= limit { return true }
    }
    return false
  }

  /// Gives an entry that was made "all ones" for want of space a cluster with the exact bits;
  /// leaves it as it is if there is still no space.
  private func unflatten(_ bitmap: TrackedBitmap, _ entry: Int) async throws(ImageError) {
    let all = bitmap.allBits(entry)
    if bitmap.bits.exactBits(of: all).all { return bitmap.flatten(entry, isExact: true) }
    guard let run = try await reserve() else { return }
    let wasDurable = bitmap.bits.isDurable(all)
    bitmap.dropExcess(ofEntry: entry)
    do {
      try await bitmap.writeCluster(run.start, for: entry, adding: [], storage)
      try await flusher.flush()
    } catch {
      // The entry still says "all ones".
      if wasDurable { bitmap.bits.becameDurable(all) }
      giveUp(run)
      if error.errno == .noSpace { return }
      throw error
    }
    bitmap.link(entry, to: run.start)
  }
}
