import BlockCore
import QCOW2Format

/// Keeps reserved clusters that nobody has taken yet free on the host file, so that a crash leaks few.
///
/// Reserved clusters have a refcount of 1 in memory. In the copies of refcount slices that a round writes,
/// those that will not be taken soon are 0. A cluster that an entry points at must have its refcount on
/// the host file before the entry is. So a round calls ``update()`` after it has copied the entries: a
/// cluster that one of them points at was taken before. If the host file still has it as free, its slice
/// is written again, before the entries.
///
/// A clean slice of which the host file has such zeros is *held*: evicted and loaded again, it would hand
/// reserved clusters out a second time.
final class ReservationMask: @unchecked Sendable {  // why: belongs to the one running round
  private let arenas: WorkerArenas
  private let refcounts: RefcountStore
  /// By the key of each held slice: the clusters that have refcount 0 on the host file and 1 in memory.
  private var onHost: [UInt64: [Range<HostCluster>]] = [:]
  /// By key: the clusters that copies of slices show as free, since the last ``update()``.
  private var hidden: [UInt64: [Range<HostCluster>]] = [:]

  init(arenas: WorkerArenas, refcounts: RefcountStore) {
    self.arenas = arenas
    self.refcounts = refcounts
  }

  /// Whether the host file has a cluster as free that has been taken.
  ///
  /// Each clean flush asks: nothing is allocated.
  var isStale: Bool {
    for ranges in onHost.values {
      for range in ranges where !arenas.isUntaken(range) { return true }
    }
    return false
  }

  private func staleKeys(_ untaken: [UntakenRuns]) -> [UInt64] {
    let runs = untaken.flatMap(\.runs)
    return onHost.compactMap { key, ranges in
      let isUntaken = ranges.allSatisfy { range in
        runs.contains { $0.lowerBound <= range.lowerBound && range.upperBound <= $0.upperBound }
      }
      return isUntaken ? nil : key
    }
  }

  /// Marks slices dirty whose taken clusters the host file has as free, and chooses anew what copies show
  /// as free; call after the entries of a round have been copied, before refcounts are.
  func update() {
    let untaken = arenas.untaken()
    for key in staleKeys(untaken) { refcounts.cache.markDirty(HostOffset(key)) }
    hidden.removeAll(keepingCapacity: true)
    for run in untaken.flatMap(\.idle) { hide(run) }
  }

  private func hide(_ run: Range<HostCluster>) {
    var next = run.lowerBound
    while next < run.upperBound {
      let part = next..<min(refcounts.sliceRange(of: next).upperBound, run.upperBound)
      if let key = try? refcounts.sliceKey(of: next) {
        hidden[key.bytes, default: []].append(part)
      }
      next = part.upperBound
    }
  }

  /// Whether a copy of the slice has clusters to show as free.
  func hides(_ key: UInt64) -> Bool { hidden[key] != nil }

  /// Shows clusters as free in the copy of a slice, if the slice is held.
  func apply(to copy: UnsafeMutableRawPointer, key: UInt64, isHeld: Bool) {
    guard isHeld, let ranges = hidden[key] else {
      onHost[key] = nil
      return
    }
    onHost[key] = ranges
    let order = refcounts.geometry.refcountOrder
    for cluster in ranges.joined() {
      let index = refcounts.indexInSlice(cluster)
      if unsafe RefcountWidth.get(copy, order: order, index: index) == 1 {
        unsafe RefcountWidth.set(copy, order: order, index: index, value: 0)
      }
    }
  }
}
