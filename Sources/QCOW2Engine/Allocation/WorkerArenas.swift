import BlockCore
import QCOW2Format
import Synchronization

/// Runs of reserved host clusters, one arena per worker, so that most allocations share no lock.
///
/// Each arena has a lock of its own, which only a worker that finds no cluster anywhere else ever
/// contends for. What is left at close goes back. After a crash most of it is free, too: flush rounds
/// leave it out of the refcounts that they write (``ReservationMask``).
final class WorkerArenas: @unchecked Sendable {  // why: each stripe's lock guards its arena
  /// Who sees to the next run.
  private enum Fetch {
    case idle
    /// A request has been sent to the slow path for it, when so many clusters were left. That request may
    /// have found that it needs no cluster: at half of that number, another one is sent.
    case asked(left: UInt64)
    case underWay
  }

  /// Both runs are recorded at each change, by one store each: see ``ArenaRecords``.
  private struct Arena: ~Copyable {
    private(set) var run = ClusterRun(start: HostCluster(0), count: 0, isFresh: false) {
      didSet { record.setRun(run) }
    }
    /// The run that follows, reserved before the present one is used up.
    private(set) var next = ClusterRun(start: HostCluster(0), count: 0, isFresh: false) {
      didSet { record.setNext(next) }
    }
    private let record: ArenaRecord
    /// Clusters to reserve at the next refill; grows while the worker keeps allocating.
    var refill: UInt64
    var fetch = Fetch.idle

    init(refill: UInt64, record: ArenaRecord) {
      self.refill = refill
      self.record = record
    }

    /// Less than half of a run is left, and no other.
    @inline(__always) var isLow: Bool {
      next.count == 0 && (run.count < refill / 2 || run.count == 0)
    }

    /// Whether a request is to be sent to the slow path for the next run; notes that it has been.
    @inline(__always) mutating func asks() -> Bool {
      if !isLow { return false }
      switch fetch {
      case .underWay: return false
      case .asked(let left) where run.count &+ run.count > left || run.count == 0: return false
      case .asked, .idle:
        fetch = .asked(left: run.count)
        return true
      }
    }

    @inline(__always) mutating func takeRun(upTo wanted: UInt64) -> ClusterRun? {
      advance()
      return run.count == 0 ? nil : run.take(wanted)
    }

    /// Takes exactly `count` clusters of the run in use; nil if it has not so many, or not fresh ones
    /// where `fresh` is wanted.
    @inline(__always) mutating func takeRun(exactly count: UInt64, fresh: Bool) -> ClusterRun? {
      advance()
      if run.count < count || fresh && !run.isFresh { return nil }
      return run.take(count)
    }

    /// Goes over to the run that follows, once the one in use is used up.
    ///
    /// For a moment it is recorded twice, and counts once.
    @inline(__always) private mutating func advance() {
      if run.count != 0 || next.count == 0 { return }
      run = next
      next.count = 0
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
  private let records: ArenaRecords
  private let refillMutexes: [AsyncMutex]
  let allocator: ClusterAllocator
  private let largestRefill: UInt64
  /// The most clusters at the start of an arena that count as used on the host file.
  private let mostShown: UInt64

  /// - Parameters:
  ///   - workers: the number of arenas.
  ///   - clusterSize: in bytes; a refill is 64 clusters at first, grows to `most`, and is never more than
  ///     1024 clusters or less than 4.
  ///   - most: the bytes of the largest refill.
  ///   - allocator: where refills come from.
  ///   - records: as many as workers.
  init(
    workers: Int, clusterSize: UInt64, most: UInt64, allocator: ClusterAllocator,
    records: ArenaRecords
  ) {
    self.allocator = allocator
    self.records = records
    let largest = min(max(most / clusterSize, 4), 1024)
    largestRefill = largest
    mostShown = min(max((1 << 20) / clusterSize, 8), 256)
    arenas = LockedStripes(count: workers, rank: .leaf) { worker in
      Arena(refill: min(64, largest), record: records.record(of: worker))
    }
    refillMutexes = (0..<workers).map { _ in AsyncMutex() }
  }

  deinit { arenas.deallocate() }

  /// Takes 1 to `wanted` contiguous clusters; refills the arena when it is empty, and fetches the next
  /// run when it is low.
  ///
  /// While the host is short of room, it may have none but for what another worker's arena has: that is
  /// taken before more is asked for.
  ///
  /// - Throws: ``ImageError/noSpace`` if no arena has a cluster left either.
  func take(upTo wanted: UInt64, worker: Int) async throws(ImageError) -> ClusterRun {
    while true {
      if let run = takeNow(upTo: wanted, worker: worker) {
        // Whoever finds the arena empty hears of a failure.
        if mayFetch(worker) { try? await refill(worker) }
        return run
      }
      if allocator.isShort.load(ordering: .relaxed), let run = takeFromAny(upTo: wanted) {
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
      if arena.asks() { return nil }
      return arena.takeRun(exactly: UInt64(count), fresh: fresh)
    }
  }

  /// Whether the caller shall fetch the next run: one at a time.
  ///
  /// Not while the host is short of room: what is fetched in advance is missing elsewhere.
  private func mayFetch(_ worker: Int) -> Bool {
    if allocator.isShort.load(ordering: .relaxed) { return false }
    return arenas[worker].withLock { arena in
      if case .underWay = arena.fetch { return false }
      return arena.isLow
    }
  }

  /// What each arena has reserved and nobody has taken, at some moment.
  func untaken() -> [UntakenRuns] {
    (0..<arenas.count).map { worker in
      arenas[worker].withLock { arena in
        var runs: [Range<HostCluster>] = []
        if arena.run.count > 0 { runs.append(arena.run.start..<arena.run.end) }
        if arena.next.count > 0 { runs.append(arena.next.start..<arena.next.end) }
        return UntakenRuns(runs: runs, shown: min(mostShown, max(arena.refill / 4, 2)))
      }
    }
  }

  /// Whether one arena has all of a range, and nobody has taken any of it.
  func isUntaken(_ range: Range<HostCluster>) -> Bool {
    for worker in 0..<arenas.count {
      let isThere = arenas[worker].withLock { arena in
        arena.run.contains(range) || arena.next.contains(range)
      }
      if isThere { return true }
    }
    return false
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
    for worker in refillMutexes.indices { try await giveBack(worker: worker) }
  }

  /// The same for the arena of one worker; call when no request of that worker runs any more.
  ///
  /// - Returns: whether there was anything to give back.
  @discardableResult
  func giveBack(worker: Int) async throws(ImageError) -> Bool {
    var hasAny = false
    while let run = takeNow(upTo: .max, worker: worker) {
      hasAny = true
      if run.isFresh {
        let geometry = allocator.geometry
        await allocator.storage.punchHole(
          at: geometry.start(of: run.start),
          length: run.count << UInt64(geometry.clusterBits))
      }
      try await allocator.unreserve(run)
    }
    return hasAny
  }
}

/// Reserved clusters of one arena that nobody has taken.
struct UntakenRuns {
  /// In the order in which they will be taken.
  let runs: [Range<HostCluster>]
  /// How many of them will be taken soon.
  let shown: UInt64

  /// All but those that will be taken soon.
  var idle: [Range<HostCluster>] {
    var left = shown
    return runs.compactMap { run in
      let start = run.lowerBound + min(left, UInt64(run.count))
      left -= start - run.lowerBound
      return start < run.upperBound ? start..<run.upperBound : nil
    }
  }
}
