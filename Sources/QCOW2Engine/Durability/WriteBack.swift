import BlockCore
import Synchronization

/// Copies of dirty slices, on their way to the host file.
///
/// Copying is what makes a cut: what the copy holds is what the round may rely on, whatever changes
/// meanwhile. The staging memory is bounded; a round takes as many batches as it needs.
final class WriteBackBatch: @unchecked Sendable {  // why: one round's; lanes share `nextRun` alone
  /// The slices copied at once.
  static let capacity = 512
  private let cache: SliceCache
  private let staging: IOBuffer
  /// Of refcounts: the reserved clusters that copies show as free.
  private let mask: ReservationMask?
  private var slices: [DirtySlice] = []
  /// The first of ``runs`` that no lane has taken for writing.
  private let nextRun = Atomic<Int>(0)

  init(cache: SliceCache, mask: ReservationMask? = nil) {
    self.cache = cache
    self.mask = mask
    staging = IOBuffer(count: min(Self.capacity, cache.slotCount) * cache.sliceSize)
  }

  var isEmpty: Bool { slices.isEmpty }
  /// The bytes of all copies.
  var byteCount: Int { slices.count * cache.sliceSize }
  var sliceSize: Int { cache.sliceSize }
  var sliceCount: Int { slices.count }

  /// Where a slice goes, and its copy.
  func slice(_ index: Int) -> (at: HostOffset, bytes: UnsafeMutableRawPointer) {
    unsafe (HostOffset(slices[index].key), staging.base + index * cache.sliceSize)
  }

  /// Copies the first slices of `dirty`, at most the capacity, and removes them from it.
  func take(from dirty: inout ArraySlice<DirtySlice>) {
    let room = staging.count / cache.sliceSize
    slices = Array(dirty.prefix(room))
    dirty = dirty.dropFirst(slices.count)
    for index in slices.indices {
      let copy = unsafe staging.base + index * cache.sliceSize
      let key = slices[index].key
      let isHeld = unsafe cache.copy(&slices[index], to: copy, holds: mask?.hides(key) ?? false)
      unsafe mask?.apply(to: copy, key: key, isHeld: isHeld)
    }
  }

  /// The most transfers of a batch that run at once.
  static let lanes = 8

  /// Writes the copies, neighbours in one transfer and several transfers at once, and marks each clean
  /// that has not changed since; empty afterwards.
  ///
  /// A place that cannot be written keeps no other slice from being written.
  ///
  /// - Throws: one of the failures, after all transfers have ended; what was not written stays dirty.
  func write(to storage: ImageStorage) async throws(ImageError) {
    defer { slices.removeAll(keepingCapacity: true) }
    let runs = runs
    nextRun.store(0, ordering: .relaxed)
    // A lane is a task: not worth it for a few transfers, each of which suspends the caller anyway.
    if runs.count < 4 || !ReadBatch.mayRunTasks {
      if let failure = await lane(runs, storage) { throw failure }
      return
    }
    let lanes = min(Self.lanes, runs.count / 2)
    let failure = await withTaskGroup(of: ImageError?.self) { group in
      for _ in 1..<lanes { group.addTask { await self.lane(runs, storage) } }
      var failure = await self.lane(runs, storage)
      for await other in group where failure == nil { failure = other }
      return failure
    }
    if let failure { throw failure }
  }

  /// Writes one run after the other that nobody else has taken.
  ///
  /// Any number of tasks may do this at once, on any threads.
  ///
  /// - Returns: the first failure.
  private func lane(_ runs: [Range<Int>], _ storage: ImageStorage) async -> ImageError? {
    var failure: ImageError?
    while true {
      let number = nextRun.wrappingAdd(1, ordering: .relaxed).oldValue
      guard number < runs.count else { return failure }
      do throws(ImageError) { try await write(runs[number], to: storage) } catch {
        failure = failure ?? error
      }
    }
  }

  private func write(_ run: Range<Int>, to storage: ImageStorage) async throws(ImageError) {
    try unsafe await storage.write(
      from: DataBuffer(
        memory: staging.base + run.lowerBound * cache.sliceSize,
        count: run.count * cache.sliceSize),
      at: HostOffset(slices[run.lowerBound].key))
    cache.markWritten(slices[run])
  }

  /// The slices, by their places, that one transfer each can write.
  private var runs: [Range<Int>] {
    var runs: [Range<Int>] = []
    var start = 0
    while start < slices.count {
      let end = endOfRun(from: start)
      runs.append(start..<end)
      start = end
    }
    return runs
  }

  private func endOfRun(from start: Int) -> Int {
    var end = start + 1
    let limit = min(slices.count, start + (1 << 20) / cache.sliceSize)
    while end < limit, slices[end].key == slices[end - 1].key &+ UInt64(cache.sliceSize) {
      end += 1
    }
    return end
  }
}
