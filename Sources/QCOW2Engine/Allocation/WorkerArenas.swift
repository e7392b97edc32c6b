import BlockCore

/// Runs of reserved host clusters, one arena per worker, so that most allocations take no lock.
///
/// An arena is touched by its own worker's thread only. What is left at close goes back; after a
/// crash it is leaked clusters, bounded by the arena sizes.
@safe
final class WorkerArenas: @unchecked Sendable {  // why: each arena belongs to one worker's thread
  private struct Arena {
    var run = ClusterRun(start: 0, count: 0, isFresh: false)
    /// Clusters to reserve at the next refill; grows while the worker keeps allocating.
    var refill: UInt64
  }

  private let arenas: UnsafeMutablePointer<Arena>
  private let refillMutexes: [AsyncMutex]
  let allocator: ClusterAllocator
  private let largestRefill: UInt64

  /// - Parameters:
  ///   - workers: the number of arenas.
  ///   - clusterSize: in bytes; a refill is 64 clusters at first, and never more than 4 MiB.
  ///   - allocator: where refills come from.
  init(workers: Int, clusterSize: UInt64, allocator: ClusterAllocator) {
    self.allocator = allocator
    largestRefill = min(max((4 << 20) / clusterSize, 1), 1024)
    unsafe arenas = .allocate(capacity: workers)
    unsafe arenas.initialize(repeating: Arena(refill: min(64, largestRefill)), count: workers)
    refillMutexes = (0..<workers).map { _ in AsyncMutex() }
  }

  deinit { unsafe arenas.deallocate() }

  /// Takes 1 to `wanted` contiguous clusters; refills the arena when it is empty.
  func take(upTo wanted: UInt64, worker: Int) async throws(ImageError) -> ClusterRun {
    while true {
      if let run = takeNow(upTo: wanted, worker: worker) { return run }
      try await refill(worker)
    }
  }

  /// Takes from the arena without waiting; nil if it is empty.
  @inline(__always) func takeNow(upTo wanted: UInt64, worker: Int) -> ClusterRun? {
    if unsafe arenas[worker].run.count == 0 { return nil }
    return unsafe arenas[worker].run.take(wanted)
  }

  private func refill(_ worker: Int) async throws(ImageError) {
    await refillMutexes[worker].acquire()
    defer { refillMutexes[worker].release() }
    // Another task of this worker may have refilled it meanwhile.
    if unsafe arenas[worker].run.count > 0 { return }
    let run = try unsafe await allocator.reserve(upTo: arenas[worker].refill)
    unsafe arenas[worker].run = run
    unsafe arenas[worker].refill = unsafe min(arenas[worker].refill * 2, largestRefill)
  }

  /// Gives everything back; call when no request runs any more.
  func returnAll() async throws(ImageError) {
    for worker in refillMutexes.indices {
      let run = unsafe arenas[worker].run
      unsafe arenas[worker].run.count = 0
      try await allocator.unreserve(run)
    }
  }
}
