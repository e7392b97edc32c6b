import Synchronization

/// What a slice cache has done, for statistics; read by anyone, without a lock.
struct CacheCounters: ~Copyable {
  /// Slices that were not there and were loaded.
  let loads = Atomic<UInt64>(0)
  /// Slices that were loaded before a request came to need them.
  let loadsAhead = Atomic<UInt64>(0)
  /// Times that a request waited for a load that another one had begun.
  let waits = Atomic<UInt64>(0)
  /// Clean slices that made room for others.
  let evictions = Atomic<UInt64>(0)
  /// Slices that are there now, those that are being loaded among them.
  let resident = Atomic<Int>(0)

  func noteLoad(hasEvicted: Bool, isAhead: Bool = false) {
    if isAhead {
      loadsAhead.wrappingAdd(1, ordering: .relaxed)
    } else {
      loads.wrappingAdd(1, ordering: .relaxed)
    }
    noteInsertion(hasEvicted: hasEvicted)
  }

  /// A slice is there now, by a load or because its contents are known.
  func noteInsertion(hasEvicted: Bool) {
    if hasEvicted {
      evictions.wrappingAdd(1, ordering: .relaxed)
    } else {
      resident.wrappingAdd(1, ordering: .relaxed)
    }
  }

  func noteWait() { waits.wrappingAdd(1, ordering: .relaxed) }

  func noteRemoval() { resident.wrappingSubtract(1, ordering: .relaxed) }
}
