import Synchronization

@testable import QCOW2Engine

/// What a cache has done so far.
struct CacheCounts {
  let loads: Int
  let loadsAhead: Int
  let waits: Int
  let evictions: Int
}

extension SliceCache {
  var counts: CacheCounts {
    CacheCounts(
      loads: Int(counters.loads.load(ordering: .relaxed)),
      loadsAhead: Int(counters.loadsAhead.load(ordering: .relaxed)),
      waits: Int(counters.waits.load(ordering: .relaxed)),
      evictions: Int(counters.evictions.load(ordering: .relaxed)))
  }
}
