package import JSON
package import QCOW2Engine

// The keys are documented in the README and stay what they are.

extension ImageStatistics {
  /// An object with what `stats` and `bench` tell of the engine.
  package var json: JSONValue {
    .object([
      .init("l2_cache", l2.json),
      .init("refcount_cache", refcounts.json),
      .init("flush_rounds", .count(flushRounds)),
      .init("dirty_ms", .count(dirtyMilliseconds)),
      .init("clusters_reserved", .count(reservedClusters)),
      .init("clusters_returned", .count(returnedClusters)),
      .init("pending_frees", .count(pendingFrees)),
      .init("durable_frees", .count(durableFrees)),
      .init("bitmaps", .count(bitmaps)),
      .init("leaks", .string(leaks.name)),
      .init("leaks_returned", .count(leaksReturned)),
      .init("pauses", .count(pauses)),
      .init("longest_pause_ms", .decimal(Double(longestPause) / 1e6, digits: 3)),
    ])
  }
}

extension ImageStatistics.Cache {
  fileprivate var json: JSONValue {
    .object([
      .init("slots", .count(slots)),
      .init("slice_bytes", .count(sliceBytes)),
      .init("resident", .count(resident)),
      .init("dirty", .count(dirty)),
      .init("misses", .count(loads)),
      .init("read_ahead", .count(loadsAhead)),
      .init("evictions", .count(evictions)),
    ])
  }
}
