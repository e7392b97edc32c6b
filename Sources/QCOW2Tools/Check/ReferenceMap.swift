import BlockCore
import Glibc
import QCOW2Format
import Synchronization

/// How often each host cluster is referred to, and as what.
///
/// Sparse: memory is taken, two bytes for each cluster, only for pages of 4096 clusters of which at
/// least one is referred to, and never for clusters beyond the count given at the start [CHK-2].
/// Counts saturate at 2^64 - 1. Threads may add references at the same time; the counts do not depend on
/// their order, and ``HostUse/conflict`` stays once it is set.
@safe
final class ReferenceMap: @unchecked Sendable {  // why: atomics, and a mutex for the rest
  /// Bits 0 to 11: the count; bits 12 to 15: the ``HostUse``.
  private typealias Cell = Atomic<UInt16>
  private static let pageBits: UInt64 = 12
  private static let countBits: UInt16 = 12
  /// A count that does not fit: it is in `large`.
  private static let isLarge: UInt16 = (1 << countBits) - 1

  /// The end of the clusters that are counted; all others are ignored.
  let end: HostCluster
  /// The addresses of the pages' cells; 0 for none.
  private let pages: UnsafeMutablePointer<Atomic<UInt>>
  private let pageCount: Int
  private let large = Mutex<[HostCluster: UInt64]>([:])

  /// - Parameter clusterCount: At most 2^31, checked by the caller: the page list has 2^19 entries.
  init(clusterCount: UInt64) {
    end = HostCluster(clusterCount)
    pageCount = Int(clusterCount >> Self.pageBits) + 1
    unsafe pages = Self.zeroed(pageCount)
  }

  deinit {
    for index in 0..<pageCount {
      if let page = unsafe page(index) { unsafe free(page) }
    }
    unsafe free(pages)
  }

  /// Memory for values of which all bytes are zero; without memory the program ends.
  private static func zeroed<T: ~Copyable>(_ count: Int) -> UnsafeMutablePointer<T> {
    // As an array would do: a check needs this memory to say anything, and nothing has been written.
    guard let memory = unsafe calloc(count, MemoryLayout<T>.stride) else {
      fatalError("no memory for \(count * MemoryLayout<T>.stride) bytes")
    }
    return unsafe memory.bindMemory(to: T.self, capacity: count)
  }

  @inline(__always) private static func pageIndex(_ cluster: HostCluster) -> Int {
    Int(cluster.number >> pageBits)
  }

  @inline(__always) private static func cellIndex(_ cluster: HostCluster) -> Int {
    Int(cluster.number & ((1 << pageBits) - 1))
  }

  @inline(__always) private func page(_ index: Int) -> UnsafeMutablePointer<Cell>? {
    // Zeroed memory: it is right for whoever sees its address, since all accesses are atomic.
    unsafe UnsafeMutablePointer(bitPattern: pages[index].load(ordering: .acquiring))
  }

  /// The page of a cluster, made if it is not there.
  @inline(__always) private func page(of cluster: HostCluster) -> UnsafeMutablePointer<Cell> {
    let index = Self.pageIndex(cluster)
    if let page = unsafe page(index) { return unsafe page }
    return unsafe makePage(index)
  }

  private func makePage(_ index: Int) -> UnsafeMutablePointer<Cell> {
    let new: UnsafeMutablePointer<Cell> = unsafe Self.zeroed(1 << Int(Self.pageBits))
    let (exchanged, other) = unsafe pages[index].compareExchange(
      expected: 0, desired: UInt(bitPattern: new), ordering: .acquiringAndReleasing)
    if exchanged { return unsafe new }
    unsafe free(new)
    // The exchange failed, so there is an address, and pages are freed by `deinit` only.
    guard let page = unsafe UnsafeMutablePointer<Cell>(bitPattern: other) else {
      fatalError("a page that was there is gone")
    }
    return unsafe page
  }

  /// Adds `times` references to a cluster.
  ///
  /// - Returns: The use that the cluster had before; ``HostUse/nothing`` for the first reference.
  @inline(__always)
  func add(_ use: HostUse, to cluster: HostCluster, times: UInt64 = 1) -> HostUse {
    guard cluster < end else { return .nothing }
    let cell = unsafe page(of: cluster) + Self.cellIndex(cluster)
    var old = unsafe cell.pointee.load(ordering: .relaxed)
    while times < UInt64(Self.isLarge), (old & Self.isLarge) + UInt16(times) < Self.isLarge {
      let new = (old & Self.isLarge) + UInt16(times) | Self.stored(use, after: old)
      let (exchanged, now) = unsafe cell.pointee.weakCompareExchange(
        expected: old, desired: new, ordering: .relaxed)
      if exchanged { return Self.use(old) }
      old = now
    }
    return unsafe addLarge(use, to: cluster, cell, times)
  }

  /// A count that does not fit its cell changes under the mutex only.
  private func addLarge(
    _ use: HostUse, to cluster: HostCluster, _ cell: UnsafeMutablePointer<Cell>, _ times: UInt64
  ) -> HostUse {
    large.withLock { large in
      while true {
        let old = unsafe cell.pointee.load(ordering: .relaxed)
        let stored = old & Self.isLarge
        let before = stored == Self.isLarge ? large[cluster] ?? UInt64(stored) : UInt64(stored)
        let (sum, overflow) = before.addingReportingOverflow(times)
        let count = overflow ? UInt64.max : sum
        let cellCount = UInt16(min(count, UInt64(Self.isLarge)))
        let (exchanged, _) = unsafe cell.pointee.weakCompareExchange(
          expected: old, desired: cellCount | Self.stored(use, after: old), ordering: .relaxed)
        guard exchanged else { continue }
        if cellCount == Self.isLarge { large[cluster] = count }
        return Self.use(old)
      }
    }
  }

  @inline(__always) private static func use(_ cell: UInt16) -> HostUse {
    HostUse(rawValue: UInt8(cell >> countBits)) ?? .conflict
  }

  @inline(__always) private static func stored(_ use: HostUse, after old: UInt16) -> UInt16 {
    let conflict = UInt16(HostUse.conflict.rawValue) << countBits
    return old & ~isLarge == conflict ? conflict : UInt16(use.rawValue) << countBits
  }

  /// Marks a cluster as used in ways that exclude each other; it has references already.
  func markConflict(_ cluster: HostCluster) {
    _ = add(.conflict, to: cluster, times: 0)
  }

  /// The number of references to a cluster.
  func count(of cluster: HostCluster) -> UInt64 {
    guard cluster < end, let page = unsafe page(Self.pageIndex(cluster)) else { return 0 }
    let stored = unsafe page[Self.cellIndex(cluster)].load(ordering: .relaxed) & Self.isLarge
    guard stored == Self.isLarge else { return UInt64(stored) }
    return large.withLock { $0[cluster] } ?? UInt64(stored)
  }

  /// What a cluster is used for; the last use that was added, or ``HostUse/conflict``.
  func use(of cluster: HostCluster) -> HostUse {
    guard cluster < end, let page = unsafe page(Self.pageIndex(cluster)) else { return .nothing }
    return unsafe Self.use(page[Self.cellIndex(cluster)].load(ordering: .relaxed))
  }

  /// Compares counts with refcounts of 16 bits, as far as they are the same.
  ///
  /// - Parameters:
  ///   - clusters: Inside one refcount block and below ``end``.
  ///   - refcounts: The big-endian refcounts, the first one that of the first cluster.
  ///   - highest: Set to the last cluster, of those that were compared, that has references.
  /// - Returns: The first cluster whose count differs, or is too large to be compared here; the end of
  ///   `clusters` if there is none.
  func firstDifference(
    _ clusters: Range<HostCluster>, _ refcounts: UnsafeRawPointer, _ highest: inout HostCluster
  ) -> HostCluster {
    var cluster = clusters.lowerBound
    while cluster < clusters.upperBound {
      let first = Self.cellIndex(cluster)
      let count = min(clusters.upperBound - cluster, (1 << Self.pageBits) - UInt64(first))
      let same = unsafe sameCounts(
        refcounts + Int(cluster - clusters.lowerBound) * 2, page(Self.pageIndex(cluster)), first,
        Int(count), cluster, &highest)
      cluster += UInt64(same)
      if same < Int(count) { return cluster }
    }
    return cluster
  }

  /// How many counts, from the cell `first` of a page on, are as the refcounts say.
  private func sameCounts(
    _ refcounts: UnsafeRawPointer, _ page: UnsafeMutablePointer<Cell>?, _ first: Int, _ count: Int,
    _ cluster: HostCluster, _ highest: inout HostCluster
  ) -> Int {
    guard let page = unsafe page else {
      return (0..<count).first { unsafe refcounts.be16($0 &* 2) != 0 } ?? count
    }
    var same = 0
    var last = -1
    while same < count {
      let stored = unsafe page[first &+ same].load(ordering: .relaxed) & Self.isLarge
      if unsafe refcounts.be16(same &* 2) != stored || stored == Self.isLarge { break }
      if stored != 0 { last = same }
      same &+= 1
    }
    if last >= 0 { highest = max(highest, cluster + UInt64(last)) }
    return same
  }

  /// The first cluster at or after `cluster`, and before `limit`, that may have references; nil if there
  /// is none.
  func nextTouched(
    from cluster: HostCluster, before limit: HostCluster = .max
  ) -> HostCluster? {
    let limit = min(limit, end)
    guard cluster < limit else { return nil }
    let index = Self.pageIndex(cluster)
    if unsafe page(index) != nil { return cluster }
    let pages = index...Self.pageIndex(HostCluster(limit.number - 1))
    guard let found = pages.first(where: { unsafe page($0) != nil }) else { return nil }
    return HostCluster(UInt64(found) << Self.pageBits)
  }

  /// The first cluster at or after `cluster` that has references; nil if there is none.
  func nextReferenced(from cluster: HostCluster) -> HostCluster? {
    var position = cluster
    while let touched = nextTouched(from: position) {
      let next = HostCluster((touched.number | ((1 << Self.pageBits) - 1)) + 1)
      position = min(next, end)
      if let found = (touched..<position).first(where: { count(of: $0) > 0 }) { return found }
    }
    return nil
  }
}
