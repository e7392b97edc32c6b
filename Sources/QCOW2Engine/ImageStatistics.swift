import BlockCore
import Synchronization

/// What an open image has done and holds in memory, at one moment.
///
/// Read without any lock but that of the deferred frees, which no request's hit path takes.
package struct ImageStatistics: Sendable, Equatable {
  /// A cache of slices of L2 tables or of refcount blocks.
  package struct Cache: Sendable, Equatable {
    /// How many slices it has room for.
    package var slots = 0
    /// The bytes of a slice.
    package var sliceBytes = 0
    /// Slices that are there, those that are being loaded among them.
    package var resident = 0
    /// Slices that are ahead of the host file.
    package var dirty = 0
    /// Slices that were not there and were loaded, since the image was opened.
    package var loads: UInt64 = 0
    /// Slices that were loaded before a request needed them, since the image was opened.
    package var loadsAhead: UInt64 = 0
    /// Clean slices that made room for others, since the image was opened.
    package var evictions: UInt64 = 0

    package init() {}
  }

  package var l2 = Cache()
  package var refcounts = Cache()
  /// Flush rounds completed since the image was opened.
  package var flushRounds: UInt64 = 0
  /// How long the oldest change has not been written back; 0 when there is none.
  package var dirtyMilliseconds: UInt64 = 0
  /// Host clusters that were reserved, and that were given back, since the image was opened.
  package var reservedClusters: UInt64 = 0
  package var returnedClusters: UInt64 = 0
  /// Clusters that lost their pointer in memory, but not durably yet.
  package var pendingFrees: UInt64 = 0
  /// Clusters that lost their pointer durably and wait for requests from before.
  package var durableFrees: UInt64 = 0
  /// Persistent bitmaps that are kept.
  package var bitmaps = 0
  /// What becomes of clusters that a session which died has left reserved, and how many were given back.
  package var leaks = LeakState.none
  package var leaksReturned: UInt64 = 0
  /// How often requests were kept out as a whole: for a snapshot, another size, a larger L1 table.
  package var pauses: UInt64 = 0
  /// For how many nanoseconds at most, the wait for requests in flight included.
  package var longestPause: UInt64 = 0

  package init() {}
}

extension Image {
  /// What the image has done and holds.
  package var statistics: ImageStatistics {
    var statistics = ImageStatistics()
    statistics.l2 = mapping.cache.statistics
    statistics.refcounts = supply.allocator.refcounts.cache.statistics
    statistics.flushRounds = durability.flusher.rounds.load(ordering: .relaxed)
    statistics.dirtyMilliseconds = durability.dirtyMilliseconds
    statistics.reservedClusters = supply.allocator.reserved.load(ordering: .relaxed)
    statistics.returnedClusters = supply.allocator.returned.load(ordering: .relaxed)
    (statistics.pendingFrees, statistics.durableFrees) = supply.frees.clusterCounts
    statistics.bitmaps = changes?.trackedCount ?? 0
    statistics.leaks = LeakState(rawValue: leaks.state.load(ordering: .relaxed)) ?? .none
    statistics.leaksReturned = leaks.returned.load(ordering: .relaxed)
    statistics.pauses = gate.pauses.load(ordering: .relaxed)
    statistics.longestPause = gate.longestPause.load(ordering: .relaxed)
    return statistics
  }
}

extension SliceCache {
  fileprivate var statistics: ImageStatistics.Cache {
    var cache = ImageStatistics.Cache()
    cache.slots = slotCount
    cache.sliceBytes = sliceSize
    cache.resident = max(counters.resident.load(ordering: .relaxed), 0)
    cache.dirty = max(dirtyCount, 0)
    cache.loads = counters.loads.load(ordering: .relaxed)
    cache.loadsAhead = counters.loadsAhead.load(ordering: .relaxed)
    cache.evictions = counters.evictions.load(ordering: .relaxed)
    return cache
  }
}
