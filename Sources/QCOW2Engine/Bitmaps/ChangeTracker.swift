import BlockCore
import QCOW2Format
import Synchronization

/// Keeps all tracked bitmaps valid on the host file while the image is being changed.
///
/// The guarantee: before anything inside a guest range may change on the host file, the bits that
/// cover the range are durably set in every bitmap that is tracked. So whenever the power fails, or
/// the process dies, each bitmap is valid, with at worst too many bits: those of the regions around
/// recent changes (see ``IntentStreams``). After a clean close it is exact.
///
/// A table entry "all zeros" gets a cluster when one of its bits is set: refcount and contents are
/// durable before the entry is written. Where there is no cluster to be had, or all bits are set at
/// once, the entry becomes "all ones" instead, which needs none. Clusters of bitmaps are never
/// given up while it is in force, so no free depends on a table here.
///
/// Bitmaps come and go while requests run: see ``BitmapEditor``.
///
/// Locks: `mutex` is held across I/O, and inside it the flush round's and the allocator's.
@safe
final class ChangeTracker: @unchecked Sendable {  // why: `lock` and `mutex` guard all that changes
  /// Guarded by `mutex`; ``replace(with:)`` and ``replaceHeld(with:)`` change it.
  private(set) var bitmaps: [TrackedBitmap]
  /// The bits of ``bitmaps``, for requests; nil if there are none.
  private let current: Atomic<UnsafeMutablePointer<TrackedSet>?>
  /// How many bitmaps are tracked; for statistics.
  private let number: Atomic<Int>
  /// Where the bits lie, and where the tables of bitmaps start whose clusters are theirs alone; both for
  /// the one who changes the bitmaps.
  let words: BitmapWords
  var sound: Set<UInt64>
  let storage: ImageStorage
  let allocator: ClusterAllocator
  let metadata: MetadataMap
  let frees: DeferredFrees
  let flusher: FlushCoordinator

  let mutex = AsyncMutex()
  private var streams: IntentStreams
  private let lock = FutexLock(.leaf)
  /// The guest bytes that tasks wait for; guarded by `lock`.
  private var wanted: [Range<UInt64>] = []

  /// Counts exact bits that were newly set, in groups.
  private let news = Atomic<UInt64>(0)
  private let quietMilliseconds: UInt64
  /// What `news` was when it was last looked at, and since when; for one task at a time.
  private var quiet: (news: UInt64, since: UInt64) = (0, 0)
  private let isSettling = Atomic<Bool>(false)

  /// - Parameters:
  ///   - parts: the image's, with the bitmaps to track.
  ///   - words: has their bits.
  ///   - flusher: makes refcounts of new clusters durable.
  init(_ parts: ImageParts, _ words: BitmapWords, _ flusher: FlushCoordinator) {
    bitmaps = parts.bitmaps
    self.words = words
    sound = parts.soundBitmaps
    self.flusher = flusher
    unsafe current = Atomic(TrackedSet.make(parts.bitmaps))
    number = Atomic(parts.bitmaps.count)
    storage = parts.storage
    allocator = parts.allocator
    metadata = parts.metadata
    frees = parts.frees
    streams = IntentStreams(region: parts.options.bitmapIntentBytes)
    quietMilliseconds = UInt64(max(parts.options.bitmapQuietMilliseconds, 0))
  }

  deinit { unsafe TrackedSet.free(current.load(ordering: .acquiring)) }

  var trackedCount: Int { number.load(ordering: .relaxed) }

  /// Has requests follow other bitmaps from now on.
  ///
  /// - Returns: The set that was in force: requests that began before may still look at it.
  func replace(with bitmaps: [TrackedBitmap]) async -> UnsafeMutablePointer<TrackedSet>? {
    await mutex.acquire()
    defer { mutex.release() }
    self.bitmaps = bitmaps
    number.store(bitmaps.count, ordering: .relaxed)
    return unsafe current.exchange(TrackedSet.make(bitmaps), ordering: .sequentiallyConsistent)
  }

  /// The same at a shut gate and with ``mutex`` held: nobody looks at the old set any more.
  func replaceHeld(with bitmaps: [TrackedBitmap]) {
    mutex.assertHeld()
    self.bitmaps = bitmaps
    number.store(bitmaps.count, ordering: .relaxed)
    let new = unsafe TrackedSet.make(bitmaps)
    unsafe TrackedSet.free(current.exchange(new, ordering: .sequentiallyConsistent))
  }

  // MARK: Requests

  /// Notes that a range is about to change; true if its bits are durably set already.
  ///
  /// No lock, no waiting. The range lies inside the disk. Requests call it after they have set their
  /// stamps. A change of the set waits for all requests with older stamps, so it also waits for a request
  /// that has not seen the new set.
  @inline(__always) func covers(_ offset: GuestOffset, _ length: UInt64) -> Bool {
    YieldPoint.bitmap.pass()
    guard let set = unsafe current.load(ordering: .sequentiallyConsistent) else { return true }
    var isNew = false
    var isDurable = true
    for index in 0..<(unsafe set.pointee.count) {
      let tracked = unsafe set.pointee.bits[index]
      let range = tracked.bits(offset.bytes..<(offset.bytes &+ length))
      if !tracked.note(range, isNew: &isNew) { isDurable = false }
    }
    if isNew { news.wrappingAdd(1, ordering: .relaxed) }
    return isDurable
  }

  /// Notes that a range is about to change, and returns once its bits are durably set.
  ///
  /// Tasks that wait at the same time share one sync.
  ///
  /// - Throws: ``ImageError`` if the bits could not be set; the range must then not be changed.
  func record(_ offset: GuestOffset, _ length: UInt64) async throws(ImageError) {
    if length == 0 || covers(offset, length) { return }
    let bytes = offset.bytes..<(offset.bytes + length)
    lock.withLock { wanted.append(bytes) }
    await mutex.acquire()
    defer { mutex.release() }
    if covers(offset, length) { return }
    let others = takeWanted().filter { !covers(GuestOffset($0.lowerBound), UInt64($0.count)) }
    try await setDurably(intents(for: others + [bytes]))
  }

  private func takeWanted() -> [Range<UInt64>] {
    lock.withLock {
      let taken = wanted
      wanted = []
      return taken
    }
  }

  /// What to set for ranges, in order and without overlaps.
  private func intents(for ranges: [Range<UInt64>]) -> [Range<UInt64>] {
    var merged: [Range<UInt64>] = []
    let intents = ranges.map { streams.intent(for: $0) }
    for range in intents.sorted(by: { $0.lowerBound < $1.lowerBound }) {
      if let last = merged.last, last.upperBound >= range.lowerBound {
        merged[merged.count - 1] = last.lowerBound..<max(last.upperBound, range.upperBound)
      } else {
        merged.append(range)
      }
    }
    return merged
  }

  // MARK: Back to the exact bits

  /// One step of background work: when no new range has changed for a while, some of what is set
  /// beyond the exact bits is cleared.
  ///
  /// A failure is left to the next step, or to the close.
  func maintain() async {
    if isSettling.exchange(true, ordering: .acquiringAndReleasing) { return }
    defer { isSettling.store(false, ordering: .releasing) }
    let now = MonotonicClock.coarseMilliseconds()
    let seen = news.load(ordering: .relaxed)
    if seen != quiet.news { quiet = (seen, now) }
    guard now &- quiet.since >= quietMilliseconds else { return }
    await mutex.acquire()
    defer { mutex.release() }
    if bitmaps.allSatisfy(\.isExact) { return }
    _ = try? await writeExact(atMost: 64)
  }

  /// Makes the bitmaps on the host file exact; durable with the next sync.
  func finish() async throws(ImageError) {
    await mutex.acquire()
    defer { mutex.release() }
    try await settle()
  }

  /// The same with ``mutex`` held.
  func settle() async throws(ImageError) {
    while try await writeExact(atMost: 4096) {}
  }
}
