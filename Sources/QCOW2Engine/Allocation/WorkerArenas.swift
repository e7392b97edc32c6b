import BlockCore

/// Runs of reserved host clusters, one arena per worker, so that most allocations share no lock.
///
/// Each arena has a lock of its own, which only a worker that finds no cluster anywhere else ever
/// contends for. What is left at close goes back; after a crash it is leaked clusters, bounded by
/// the arena sizes.
final class WorkerArenas: @unchecked Sendable {  // why: each stripe's lock guards its arena
  private struct Arena: ~Copyable {
    var run = ClusterRun(start: 0, count: 0, isFresh: false)
    /// Clusters to reserve at the next refill; grows while the worker keeps allocating.
    var refill: UInt64
  }

  private let arenas: LockedStripes<Arena>
  private let refillMutexes: [AsyncMutex]
  let allocator: ClusterAllocator
  private let largestRefill: UInt64

  /// - Parameters:
  ///   - workers: the number of arenas.
  ///   - clusterSize: in bytes; a refill is 64 clusters at first, and never more than 4 MiB.
  ///   - allocator: where refills come from.
  init(workers: Int, clusterSize: UInt64, allocator: ClusterAllocator) {
    self.allocator = allocator
    let largest = min(max((4 << 20) / clusterSize, 1), 1024)
    largestRefill = largest
    arenas = LockedStripes(count: workers, rank: .leaf) { _ in Arena(refill: min(64, largest)) }
    refillMutexes = (0..<workers).map { _ in AsyncMutex() }
  }

  deinit { arenas.deallocate() }

  /// Takes 1 to `wanted` contiguous clusters; refills the arena when it is empty.
  ///
  /// - Throws: ``ImageError/noSpace`` if no arena has a cluster left either.
  func take(upTo wanted: UInt64, worker: Int) async throws(ImageError) -> ClusterRun {
    while true {
      if let run = takeNow(upTo: wanted, worker: worker) { return run }
      do { try await refill(worker) } catch {
        guard case .noSpace = error, let run = takeFromAny(upTo: wanted) else { throw error }
        return run
      }
    }
  }

  /// Takes from the arena without waiting; nil if it is empty.
  @inline(__always) func takeNow(upTo wanted: UInt64, worker: Int) -> ClusterRun? {
    arenas[worker].withLock { arena in
      arena.run.count == 0 ? nil : arena.run.take(wanted)
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
    let wanted = arenas[worker].withLock { $0.run.count > 0 ? 0 : $0.refill }
    if wanted == 0 { return }
    let run = try await allocator.reserve(upTo: wanted)
    arenas[worker].withLock { arena in
      arena.run = run
      arena.refill = min(arena.refill * 2, largestRefill)
    }
  }

  /// Gives everything back; call when no request runs any more.
  func returnAll() async throws(ImageError) {
    for worker in refillMutexes.indices {
      let run = arenas[worker].withLock { $0.run.take(.max) }
      try await allocator.unreserve(run)
    }
  }
}
