import BlockCore
import Synchronization

/// Host clusters that lost a reference, on their way back to the allocator.
///
/// The way has three steps, and none can be skipped (docs/design.md, section 4, rules 2 to 4): *pending*
/// until the removal of the pointer is durable; *durable* until no request from before that is in
/// flight; then the refcount goes down, after the hole is punched if it goes to zero. A crash on the
/// way leaves leaks, never a cluster with two owners.
final class DeferredFrees: @unchecked Sendable {  // why: `lock` guards all mutable state
  private let lock = FutexLock(.leaf)
  private var pending: [ClusterRun] = []
  private var durable: [(stamp: UInt64, runs: [ClusterRun])] = []
  /// What was pending when the running round began, until it ends.
  private var inRound: [ClusterRun] = []
  /// What is on its way back to the allocator.
  private var inReturn: [ClusterRun] = []
  /// Hears of every cluster that has lost a pointer.
  let watch = LeakWatch()
  /// Changes before any place that was let go of can be used anew: what is kept of such a place by its
  /// host offset is then no longer true.
  let generation = Atomic<UInt64>(0)
  /// How many jobs want what is durable to stay for now; see ``Sharing``.
  private var holds = 0

  /// Notes clusters whose pointer has been removed from a dirty table in memory.
  func add(_ runs: [ClusterRun]) {
    if runs.isEmpty { return }
    for run in runs { watch.note(run.start..<run.end) }
    lock.withLock { for run in runs { append(run) } }
  }

  private func append(_ run: ClusterRun) {
    if let last = pending.last, last.end == run.start {
      pending[pending.count - 1].count += run.count
    } else {
      pending.append(run)
    }
  }

  /// Starts a flush round: all that is pending now; call before copying any table.
  func takePending() -> [ClusterRun] {
    lock.withLock {
      if pending.isEmpty { return [] }
      inRound = pending
      pending = []
      return inRound
    }
  }

  /// The round failed: the removal is not known to be durable.
  func restorePending(_ runs: [ClusterRun]) {
    lock.withLock {
      inRound = []
      pending.append(contentsOf: runs)
    }
  }

  /// The round succeeded; `stamp` was drawn after it.
  func becameDurable(_ runs: [ClusterRun], stamp: UInt64) {
    if runs.isEmpty { return }
    lock.withLock {
      inRound = []
      durable.append((stamp, runs))
    }
  }

  /// Nothing goes back until ``endHold()``.
  func hold() { lock.withLock { holds += 1 } }

  func endHold() { lock.withLock { holds -= 1 } }

  /// Takes all whose stamp is below `oldest`, the oldest request in flight; ``endReturn(_:)`` follows.
  func takeMature(before oldest: UInt64) -> [ClusterRun] {
    lock.withLock {
      if holds > 0 { return [] }
      let mature = durable.filter { $0.stamp < oldest }
      durable.removeAll { $0.stamp < oldest }
      YieldPoint.generation.pass()
      if !mature.isEmpty { generation.wrappingAdd(1, ordering: .acquiringAndReleasing) }
      inReturn = mature.flatMap(\.runs)
      return inReturn
    }
  }

  /// All that was taken is free, or leaked, but for what could not be finished.
  func endReturn(_ unfinished: [ClusterRun] = []) {
    lock.withLock {
      inReturn = []
      if !unfinished.isEmpty { durable.append((0, unfinished)) }
    }
  }

  /// All clusters that still have a reference which no table shows, wherever they are on their way.
  var runs: [ClusterRun] {
    lock.withLock { pending + inRound + durable.flatMap(\.runs) + inReturn }
  }

  var isEmpty: Bool { lock.withLock { pending.isEmpty && durable.isEmpty } }
  var hasDurable: Bool { lock.withLock { !durable.isEmpty } }
  /// The clusters in each of the first two steps.
  var clusterCounts: (pending: UInt64, durable: UInt64) {
    lock.withLock {
      (
        pending.reduce(0) { $0 &+ $1.count },
        durable.reduce(0) { $1.runs.reduce($0) { $0 &+ $1.count } }
      )
    }
  }
}
