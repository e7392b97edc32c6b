import BlockCore
import QCOW2Format

// What the tracker writes, in which order; all with its mutex held.

extension ChangeTracker {
  /// Bits that are set once the round's sync has returned.
  private typealias Setting = (bitmap: TrackedBitmap, bits: Range<UInt64>)

  /// A cluster for the bits of an entry that had none.
  private struct NewCluster {
    let bitmap: TrackedBitmap
    let part: TrackedBitmap.Part
    let run: ClusterRun
  }

  /// Sets all bits of `ranges` durably, as far as that needs no new cluster; bits that have been
  /// asked for in any case.
  ///
  ///     clusters for "all zeros": refcount, contents | their entries, bits of old clusters | done
  ///
  /// At each `|`, and in between, a crash leaves bitmaps that have all bits they had before.
  func setDurably(_ ranges: [Range<UInt64>]) async throws(ImageError) {
    var settings: [Setting] = []
    var writes: [(bitmap: TrackedBitmap, part: TrackedBitmap.Part, cluster: HostOffset)] = []
    var missing: [(bitmap: TrackedBitmap, part: TrackedBitmap.Part)] = []
    for bitmap in bitmaps {
      for range in ranges {
        for part in bitmap.parts(bitmap.bits.bits(range)) {
          if bitmap.bits.isDurable(part.bits) { continue }
          let entry = bitmap.entry(part.entry)
          if let cluster = entry.cluster {
            writes.append((bitmap, part, cluster))
            settings.append((bitmap, part.bits))
          } else if entry.isAllOnes {
            settings.append((bitmap, bitmap.allBits(part.entry)))
          } else if bitmap.bits.exactBits(of: part.bits).any {
            // One cluster for an entry, however many parts of it are wanted.
            if let last = missing.last, last.bitmap === bitmap, last.part.entry == part.entry {
              let bits = last.part.bits.lowerBound..<part.bits.upperBound
              missing[missing.count - 1].part = TrackedBitmap.Part(entry: part.entry, bits: bits)
            } else {
              missing.append((bitmap, part))
            }
          }
        }
      }
    }
    settings += try await provideClusters(missing)
    for write in writes { try await write.bitmap.writeBits(write.part, in: write.cluster, storage) }
    for bitmap in bitmaps { try await bitmap.writeTable(storage) }
    try await storage.sync()
    for setting in settings { setting.bitmap.bits.becameDurable(setting.bits) }
  }

  /// Changes entries that say "all zeros" so that they have the bits of the parts.
  private func provideClusters(
    _ missing: [(bitmap: TrackedBitmap, part: TrackedBitmap.Part)]
  ) async throws(ImageError) -> [Setting] {
    var settings: [Setting] = []
    var clusters: [NewCluster] = []
    do throws(ImageError) {
      for (bitmap, part) in missing {
        let all = bitmap.allBits(part.entry)
        if bitmap.bits.exactBits(of: all).all {
          bitmap.flatten(part.entry, isExact: true)
          settings.append((bitmap, all))
        } else if let run = try await newCluster(bitmap, part) {
          clusters.append(NewCluster(bitmap: bitmap, part: part, run: run))
          settings.append((bitmap, part.bits))
        } else {
          bitmap.flatten(part.entry, isExact: false)
          settings.append((bitmap, all))
        }
      }
      if !clusters.isEmpty { try await flusher.flush() }
    } catch {
      for cluster in clusters { giveUp(cluster.run) }
      throw error
    }
    for cluster in clusters { cluster.bitmap.link(cluster.part.entry, to: cluster.run.start) }
    return settings
  }

  /// A cluster with the bits of an entry, not yet durable; nil if there is no space for one.
  private func newCluster(
    _ bitmap: TrackedBitmap, _ part: TrackedBitmap.Part
  ) async throws(ImageError) -> ClusterRun? {
    let run: ClusterRun
    do { run = try await allocator.reserve(upTo: 1) } catch {
      if error.errno == .noSpace { return nil }
      throw error
    }
    metadata.tables.insert(run.start)
    do {
      try await bitmap.writeCluster(run.start, for: part.entry, adding: part.bits, storage)
      return run
    } catch {
      giveUp(run)
      if error.errno == .noSpace { return nil }
      throw error
    }
  }

  /// Lets go of a cluster that no entry points at.
  private func giveUp(_ run: ClusterRun) {
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
    var done = 0
    for bitmap in bitmaps {
      for entry in bitmap.flattened.sorted() { try await unflatten(bitmap, entry) }
      done += try await bitmap.writeExact(atMost: limit - done, storage)
      try await bitmap.writeTable(storage)
      if done >= limit { return true }
    }
    return false
  }

  /// Gives an entry that was made "all ones" for want of space a cluster with the exact bits; leaves
  /// it as it is if there is still no space.
  private func unflatten(_ bitmap: TrackedBitmap, _ entry: Int) async throws(ImageError) {
    let all = bitmap.allBits(entry)
    if bitmap.bits.exactBits(of: all).all { return bitmap.flatten(entry, isExact: true) }
    let wasDurable = bitmap.bits.isDurable(all)
    bitmap.dropExcess(ofEntry: entry)
    let part = TrackedBitmap.Part(entry: entry, bits: all.lowerBound..<all.lowerBound)
    do throws(ImageError) {
      if let run = try await durableCluster(bitmap, part) {
        bitmap.link(entry, to: run.start)
      } else if wasDurable {
        bitmap.bits.becameDurable(all)
      }
    } catch {
      if wasDurable { bitmap.bits.becameDurable(all) }
      throw error
    }
  }

  private func durableCluster(
    _ bitmap: TrackedBitmap, _ part: TrackedBitmap.Part
  ) async throws(ImageError) -> ClusterRun? {
    guard let run = try await newCluster(bitmap, part) else { return nil }
    do { try await flusher.flush() } catch {
      giveUp(run)
      throw error
    }
    return run
  }
}
