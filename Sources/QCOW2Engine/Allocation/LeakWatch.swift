import BlockCore
import Glibc
import Synchronization

/// Which host clusters have changed hands since a look for leaks began: those it must not judge.
///
/// A look begins at a moment of rest (``Image/atRest(_:)``). A cluster that had a refcount then, and to which
/// nothing referred, can never be referred to later, for the allocator hands out clusters of refcount 0 only.
/// So it is enough to read references and refcounts at any later time, one after the other, beside
/// requests, provided that a cluster is left out whose references may have come or gone meanwhile. Such a
/// cluster is *known*. These make one known:
///
/// - the beginning: arenas, deferred frees and the packer hold references that no table shows;
/// - a refcount that changes, up or down: ``ClusterAllocator`` notes each;
/// - a pointer that is removed: ``DeferredFrees/add(_:)`` notes what it led to.
///
/// A cluster that became free may be a new table before a look has read the old one through it. So these
/// are noted apart: a look that met such a table is void. And *new* clusters are noted apart, which had no
/// refcount when the look began, or were reserved and not in use: they are no leaks from before. A known
/// cluster that is neither new nor free may be one in spite of what has happened to it: that is for the
/// next look to say.
///
/// While no look is under way a note costs one load.
@safe
final class LeakWatch: @unchecked Sendable {  // why: atomics in memory that stays where it is
  private typealias Word = Atomic<UInt64>

  /// Three sets of clusters, one behind the other in memory.
  private enum Kind: Int, CaseIterable { case known, free, new }

  private let isOn = Atomic<Bool>(false)
  /// One bit for each cluster that a look may judge in each of the sets.
  private var memory: UnsafeMutableRawPointer?
  private var wordCount = 0

  deinit { if let memory = unsafe memory { unsafe munmap(memory, byteCount) } }

  private var allWords: Int { Kind.allCases.count * wordCount }
  private var byteCount: Int { allWords * MemoryLayout<UInt64>.stride }
  private var clusterCount: UInt64 { UInt64(wordCount) * 64 }

  /// Takes memory for notes, once: clusters behind `end` are known in all looks.
  ///
  /// Three bits for each cluster, of which only pages with notes are used.
  ///
  /// - Throws: ``ImageError/noMemory(bytes:)``.
  func prepare(_ end: HostCluster) throws(ImageError) {
    if unsafe memory != nil { return }
    wordCount = Int((end.number + 63) / 64) + 1
    unsafe memory = unsafe Self.map(nil, byteCount)
    if unsafe memory == nil {
      let bytes = byteCount
      wordCount = 0
      throw .noMemory(bytes: bytes)
    }
  }

  /// Zeros, in place of what is there if `old` is given.
  private static func map(
    _ old: UnsafeMutableRawPointer?, _ bytes: Int
  ) -> UnsafeMutableRawPointer? {
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (unsafe old == nil ? 0 : MAP_FIXED)
    let memory = unsafe mmap(old, bytes, PROT_READ | PROT_WRITE, flags, -1, 0)
    return unsafe memory == MAP_FAILED ? nil : memory
  }

  /// Begins a look, with nothing known but what is reserved and what has lost a pointer; call at rest, and
  /// after ``prepare(_:)``.
  func begin(reserved: [Range<HostCluster>], freed: [Range<HostCluster>]) {
    forget()
    isOn.store(true, ordering: .sequentiallyConsistent)
    for range in reserved { noteNew(range) }
    for range in freed { note(range) }
  }

  /// Ends a look: notes are not taken any more.
  func end() {
    isOn.store(false, ordering: .sequentiallyConsistent)
    forget()
  }

  /// Who still notes something from before finds memory: it changes its contents, never its place.
  private func forget() {
    guard let memory = unsafe memory else { return }
    if unsafe Self.map(memory, byteCount) != nil { return }
    // Without memory for a new mapping.
    for index in 0..<allWords { unsafe word(index).pointee.store(0, ordering: .relaxed) }
  }

  private func word(_ index: Int) -> UnsafeMutablePointer<Word> {
    // Raw memory has no check of its own. Every caller bounds its clusters by `clusterCount`, so a trap here
    // stands for a write to memory that is somebody else's.
    guard let memory = unsafe memory, index >= 0, index < allWords else {
      preconditionFailure("a note outside the memory for notes")
    }
    return unsafe memory.assumingMemoryBound(to: Word.self) + index
  }

  // MARK: Notes

  /// References to clusters come or go.
  @inline(__always) func note(_ clusters: Range<HostCluster>) {
    if isOn.load(ordering: .acquiring) { set(clusters, .known) }
  }

  /// Clusters of refcount 0 are reserved, or about to be.
  @inline(__always) func noteNew(_ clusters: Range<HostCluster>) {
    if !isOn.load(ordering: .acquiring) { return }
    set(clusters, .new)
    set(clusters, .known)
  }

  /// The same for a cluster that nothing refers to from now on: it may be handed out anew.
  @inline(__always) func noteFree(_ cluster: HostCluster) {
    if !isOn.load(ordering: .acquiring) { return }
    set(cluster..<(cluster + 1), .free)
    set(cluster..<(cluster + 1), .known)
  }

  @inline(never) private func set(_ clusters: Range<HostCluster>, _ kind: Kind) {
    let first = kind.rawValue * wordCount
    var next = clusters.lowerBound.number
    let end = min(clusters.upperBound.number, clusterCount)
    while next < end {
      let stop = min((next | 63) + 1, end)
      let bits = (UInt64.max >> (64 - (stop - next))) << (next & 63)
      unsafe word(first + Int(next >> 6)).pointee.bitwiseOr(bits, ordering: .relaxed)
      next = stop
    }
  }

  // MARK: Questions

  /// Whether the present look must not judge a cluster; all of them if there is none.
  func knows(_ cluster: HostCluster) -> Bool { has(cluster, .known) }

  /// Whether a cluster is known and cannot be a leak from before: it is new, or became free.
  func isPast(_ cluster: HostCluster) -> Bool { has(cluster, .new) || has(cluster, .free) }

  private func has(_ cluster: HostCluster, _ kind: Kind) -> Bool {
    guard isOn.load(ordering: .acquiring), cluster.number < clusterCount else { return true }
    let index = kind.rawValue * wordCount + Int(cluster.number >> 6)
    return unsafe word(index).pointee.load(ordering: .relaxed) >> (cluster.number & 63) & 1 != 0
  }

  /// The first cluster that has become free since the look began and for which `isWanted` says yes.
  func firstFree(where isWanted: (HostCluster) -> Bool) -> HostCluster? {
    for index in 0..<wordCount {
      var bits = unsafe word(Kind.free.rawValue * wordCount + index).pointee.load(
        ordering: .relaxed)
      while bits != 0 {
        let cluster = HostCluster(UInt64(index) * 64 + UInt64(bits.trailingZeroBitCount))
        if isWanted(cluster) { return cluster }
        bits &= bits - 1
      }
    }
    return nil
  }
}
