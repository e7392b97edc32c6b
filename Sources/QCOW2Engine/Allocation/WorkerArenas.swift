import BlockCore
import QCOW2Format

/// Runs of reserved host clusters, one arena per worker, so that most allocations share no lock.
///
/// Each arena has a lock of its own, which only a worker that finds no cluster anywhere else ever
/// contends for. What is left at close goes back; after a crash it is leaked clusters, bounded by
/// the arena sizes.
final class WorkerArenas: @unchecked Sendable {  // why: each stripe's lock guards its arena
  /// Who sees to the next run.
  private enum Fetch {
    case idle
    /// A request has been sent to the slow path for it.
    case asked
    case underWay
  }

  private struct Arena: ~Copyable {
    var run = ClusterRun(start: 0, count: 0, isFresh: false)
    /// The run that follows, reserved before the present one is used up.
    var next = ClusterRun(start: 0, count: 0, isFresh: false)
    /// Clusters to reserve at the next refill; grows while the worker keeps allocating.
    var refill: UInt64
    var fetch = Fetch.idle

    /// Less than half of a run is left, and no other.
    @inline(__always) var isLow: Bool {
      next.count == 0 && (run.count < refill / 2 || run.count == 0)
    }

    @inline(__always) mutating func takeRun(upTo wanted: UInt64) -> ClusterRun? {
      if run.count == 0 {
        if next.count == 0 { return nil }
        run = next.take(.max)
      }
      return run.take(wanted)
    }

    /// Keeps a newly reserved run; false if there is no place for it.
    mutating func add(_ new: ClusterRun) -> Bool {
      if run.count == 0 {
        run = new
      } else if run.end == new.start && run.isFresh == new.isFresh && next.count == 0 {
        run.count += new.count
      } else if next.count == 0 {
        next = new
      } else {
        return false
      }
      return true
    }
  }

  private let arenas: LockedStripes<Arena>
  private let refillMutexes: [AsyncMutex]
  let allocator: ClusterAllocator
  private let largestRefill: UInt64

  /// - Parameters:
  ///   - workers: the number of arenas.
  ///   - clusterSize: in bytes; a refill is 64 clusters at first, grows to 16 MiB, and is never more than
  ///     1024 clusters or less than 4.
  ///   - allocator: where refills come from.
  init(workers: Int, clusterSize: UInt64, allocator: ClusterAllocator) {
    self.allocator = allocator
    let largest = min(max((16 << 20) / clusterSize, 4), 1024)
    largestRefill = largest
    arenas = LockedStripes(count: workers, rank: .leaf) { _ in Arena(refill: min(64, largest)) }
    refillMutexes = (0..<workers).map { _ in AsyncMutex() }
  }

  deinit { arenas.deallocate() }

  /// Takes 1 to `wanted` contiguous clusters; refills the arena when it is empty, and fetches the next
  /// run when it is low.
  ///
  /// - Throws: ``ImageError/noSpace`` if no arena has a cluster left either.
  func take(upTo wanted: UInt64, worker: Int) async throws(ImageError) -> ClusterRun {
    while true {
      if let run = takeNow(upTo: wanted, worker: worker) {
        // Whoever finds the arena empty hears of a failure.
        if mayFetch(worker) { try? await refill(worker) }
        return run
      }
      do { try await refill(worker) } catch {
        guard error.errno == .noSpace, let run = takeFromAny(upTo: wanted) else { throw error }
        return run
      }
    }
  }

  /// Takes from the arena without waiting; nil if it is empty.
  private func takeNow(upTo wanted: UInt64, worker: Int) -> ClusterRun? {
    arenas[worker].withLock { $0.takeRun(upTo: wanted) }
  }

  /// Takes `count` contiguous clusters from the arena without waiting.
  ///
  /// With `fresh`, clusters that do not read as zeros will not do. Nil if there are none, and to one
  /// caller when the arena is low: ``take(upTo:worker:)`` then fetches the next run before the others
  /// miss it.
  @inline(__always) func takeNow(exactly count: Int, fresh: Bool, worker: Int) -> ClusterRun? {
    arenas[worker].withLock { arena in
      if arena.isLow && arena.fetch == .idle {
        arena.fetch = .asked
        return nil
      }
      if arena.run.count == 0 { arena.run = arena.next.take(.max) }
      if arena.run.count < UInt64(count) || fresh && !arena.run.isFresh { return nil }
      return arena.run.take(UInt64(count))
    }
  }

  /// Whether the caller shall fetch the next run: one at a time.
  private func mayFetch(_ worker: Int) -> Bool {
    arenas[worker].withLock { arena in
      arena.isLow && arena.fetch != .underWay
    }
  }

  /// The last clusters of a full host file may lie in the arena of a worker that needs none.
  private func takeFromAny(upTo wanted: UInt64) -> ClusterRun? {
    for worker in 0..<arenas.count {
      if let run = takeNow(upTo: wanted, worker: worker) { return run }
    }
    return nil
  }

  private func refill(_ worker: Int) async throws(ImageError) {
    await refillMutexes[worker].acquire()
    defer { refillMutexes[worker].release() }
    // Another task of this worker may have refilled it meanwhile.
    let wanted = arenas[worker].withLock { arena -> UInt64 in
      if !arena.isLow { return 0 }
      arena.fetch = .underWay
      return arena.refill
    }
    if wanted == 0 { return }
    defer { arenas[worker].withLock { $0.fetch = .idle } }
    let run = try await allocator.reserve(upTo: wanted)
    let isKept = arenas[worker].withLock { arena in
      arena.refill = min(arena.refill * 2, largestRefill)
      return arena.add(run)
    }
    if !isKept { try await allocator.unreserve(run) }
  }

  /// Gives everything back, and the host's storage under what was never used; call when no request
  /// runs any more.
  func returnAll() async throws(ImageError) {
    for worker in refillMutexes.indices {
      while let run = takeNow(upTo: .max, worker: worker) {
        if run.isFresh {
          let geometry = allocator.geometry
          await allocator.storage.punchHole(
            at: geometry.start(ofHostCluster: run.start),
            length: run.count << UInt64(geometry.clusterBits))
        }
        try await allocator.unreserve(run)
      }
    }
  }
}
