import BlockCore
import JSON
import Reports

/// The locks that a load took, by rank: only in builds with `-Xswiftc -DLOCK_STATISTICS`.
package struct BenchLocks {
  /// The locks of one rank.
  struct Rank {
    let name: String
    var holds: LatencySnapshot
    var waits: LatencySnapshot
  }

  private(set) var ranks: [Rank]

  /// What was counted until now; nil in builds that count nothing.
  package static func now() -> BenchLocks? {
    #if LOCK_STATISTICS
      let ranks: [LockRank] = [.flushRound, .allocator, .inFlight, .slice, .leaf]
      return BenchLocks(
        ranks: ranks.map {
          let (holds, waits) = LockStatistics.snapshot($0)
          return Rank(name: "\($0)", holds: holds, waits: waits)
        })
    #else
      return nil
    #endif
  }

  /// What was counted since then.
  package func since(_ earlier: BenchLocks) -> BenchLocks {
    var difference = self
    for index in ranks.indices {
      difference.ranks[index].holds = ranks[index].holds.since(earlier.ranks[index].holds)
      difference.ranks[index].waits = ranks[index].waits.since(earlier.ranks[index].waits)
    }
    return difference
  }

  var json: JSONValue {
    .object(
      ranks.filter { $0.holds.count > 0 }.map { rank in
        .init(
          rank.name,
          .object([
            .init("taken", .count(rank.holds.count)),
            .init("contended", .count(rank.waits.count)),
            .init("hold_ns", rank.holds.json),
            .init("wait_ns", rank.waits.json),
          ]))
      })
  }
}
