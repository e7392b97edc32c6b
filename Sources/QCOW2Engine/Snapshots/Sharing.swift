import BlockCore
import Synchronization

/// What COPIED is worth while snapshots are taken and deleted beside the guest.
///
/// In an image that is opened, COPIED is exact: what has none is shared, and a change copies it. Two
/// things make it inexact for a while, each a phase that a job begins and ends:
///
/// - *Counting.* A cut has given the tables to a snapshot, and their refcounts are still as before.
///   What has no COPIED is shared, whatever its refcount, and no cluster that loses a pointer goes
///   back. The phase begins in the cut, with the gate shut, so each request is before it or inside.
/// - *Dropping.* References go away. A cluster or table without COPIED whose refcount is 1 is ours: it
///   gets COPIED and is written in place. The refcount is looked at and COPIED is set under the
///   allocator's mutex, and a refcount is raised under the same mutex. So who raises it afterwards
///   finds COPIED set, and takes it away before it relies on the cluster.
///
/// While neither phase lasts, nobody looks at a refcount for a write.
final class Sharing: Sendable {
  /// Clusters lie in an external data file: they have no refcounts and are never shared.
  let hasDataFile: Bool
  private let counting = Atomic<Int>(0)
  private let dropping = Atomic<Int>(0)

  init(hasDataFile: Bool) { self.hasDataFile = hasDataFile }

  var isCounting: Bool {
    YieldPoint.sharing.pass()
    return counting.load(ordering: .acquiring) > 0
  }

  /// Whether a cluster without COPIED may be ours nevertheless.
  var mayRegain: Bool {
    YieldPoint.sharing.pass()
    return dropping.load(ordering: .acquiring) > 0 && !isCounting && !hasDataFile
  }

  func beginCounting() {
    YieldPoint.sharing.pass()
    counting.wrappingAdd(1, ordering: .acquiringAndReleasing)
  }
  func endCounting() {
    YieldPoint.sharing.pass()
    counting.wrappingSubtract(1, ordering: .acquiringAndReleasing)
  }
  func beginDropping() {
    YieldPoint.sharing.pass()
    dropping.wrappingAdd(1, ordering: .acquiringAndReleasing)
  }
  func endDropping() {
    YieldPoint.sharing.pass()
    dropping.wrappingSubtract(1, ordering: .acquiringAndReleasing)
  }
}
