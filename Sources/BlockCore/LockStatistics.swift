#if LOCK_STATISTICS
  import CPlatform
  import Synchronization

  /// How long locks are held and how often threads meet at them, by rank; all locks of the process.
  ///
  /// Only in builds with `-Xswiftc -DLOCK_STATISTICS`, in which every lock reads the clock twice:
  /// times include one of these readings. Threads count in places of their own, as far as there are
  /// enough, so that they meet at no counter.
  public enum LockStatistics {
    private static let shardBits = 4
    private static let shards = (0..<1 << shardBits).map { _ in Shard() }

    private final class Shard: Sendable {
      let holds = LatencyHistograms(count: LockRank.count)
      let waits = LatencyHistograms(count: LockRank.count)
    }

    private static var shard: Shard {
      let thread = unsafe UInt64(UInt(bitPattern: qublk_thread_context()))
      return shards[Int((thread &* 0x9e37_79b9_7f4a_7c15) >> UInt64(64 - shardBits))]
    }

    /// A lock was held for so long.
    @usableFromInline static func noteHold(_ rank: LockRank, nanoseconds: UInt64) {
      shard.holds.recordShared(nanoseconds, in: Int(rank.rawValue))
    }

    /// A lock that another thread had was waited for.
    @usableFromInline static func noteWait(_ rank: LockRank, nanoseconds: UInt64) {
      shard.waits.recordShared(nanoseconds, in: Int(rank.rawValue))
    }

    /// For how long locks of a rank were held, and for how long threads waited for them.
    public static func snapshot(
      _ rank: LockRank
    ) -> (holds: LatencySnapshot, waits: LatencySnapshot) {
      var all = (holds: LatencySnapshot(), waits: LatencySnapshot())
      for shard in shards {
        all.holds.merge(shard.holds.snapshot(of: Int(rank.rawValue)))
        all.waits.merge(shard.waits.snapshot(of: Int(rank.rawValue)))
      }
      return all
    }
  }

  extension LockRank {
    fileprivate static var count: Int { Int(LockRank.leaf.rawValue) + 1 }
  }

  extension LatencyHistograms {
    /// As ``record(_:bytes:in:)``, for several writers at once.
    func recordShared(_ duration: UInt64, in number: Int) {
      let histogram = unsafe memory + number * Self.stride
      let bucket = Self.bucket(of: min(duration, Self.limit - 1))
      unsafe histogram[bucket].value.wrappingAdd(1, ordering: .relaxed)
      unsafe histogram[Self.sumPlace].value.wrappingAdd(duration, ordering: .relaxed)
      unsafe histogram[Self.maximumPlace].value.max(duration, ordering: .relaxed)
    }
  }
#endif
