import BlockCore

/// Copies of dirty slices, on their way to the host file.
///
/// Copying is what makes a cut: what the copy holds is what the round may rely on, whatever changes
/// meanwhile. The staging memory is bounded; a round takes as many batches as it needs.
final class WriteBackBatch: @unchecked Sendable {  // why: owned by the one running flush round
  /// The slices copied at once.
  static let capacity = 512
  private let cache: SliceCache
  private let staging: IOBuffer
  private var slices: [DirtySlice] = []

  init(cache: SliceCache) {
    self.cache = cache
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
      unsafe cache.copy(&slices[index], to: staging.base + index * cache.sliceSize)
    }
  }

  /// Writes the copies, neighbours in one transfer, and marks each clean that has not changed since.
  func write(to storage: ImageStorage) async throws(ImageError) {
    var start = 0
    while start < slices.count {
      let end = endOfRun(from: start)
      try unsafe await storage.write(
        from: DataBuffer(
          memory: staging.base + start * cache.sliceSize, count: (end - start) * cache.sliceSize),
        at: HostOffset(slices[start].key))
      cache.markWritten(slices[start..<end])
      start = end
    }
    slices.removeAll(keepingCapacity: true)
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
