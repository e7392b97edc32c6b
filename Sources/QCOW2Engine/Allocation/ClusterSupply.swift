import BlockCore

/// The host clusters of an open image: who gives them, who has them, and when those that were let go
/// of come back.
final class ClusterSupply: Sendable {
  let allocator: ClusterAllocator
  let arenas: WorkerArenas
  let metadata: MetadataMap
  let frees: DeferredFrees
  let packer: CompressedPacker
  private let stamps: RequestStamps
  /// Held by the one who returns clusters.
  private let maturing = AsyncMutex()
  private let punches: Bool

  init(_ parts: ImageParts, arenas: WorkerArenas, stamps: RequestStamps) {
    allocator = parts.allocator
    self.arenas = arenas
    metadata = parts.metadata
    frees = parts.frees
    self.stamps = stamps
    packer = CompressedPacker(
      allocator: parts.allocator, alignment: parts.storage.file.traits.offsetAlignment)
    punches = parts.options.discardsToHost
  }

  /// Gives clusters back whose pointers are gone for good and that no request can still be at.
  ///
  /// - Returns: whether there were any.
  @discardableResult
  func returnMature() async throws(ImageError) -> Bool {
    await maturing.acquire()
    defer { maturing.release() }
    return try await returnHeld()
  }

  /// The same, unless somebody is at it already.
  func returnMatureIfIdle() async throws(ImageError) {
    guard maturing.tryAcquire() else { return }
    defer { maturing.release() }
    _ = try await returnHeld()
  }

  private func returnHeld() async throws(ImageError) -> Bool {
    maturing.assertHeld()
    let mature = frees.takeMature(before: stamps.oldest())
    var done = 0
    do {
      for run in mature {
        try await allocator.release(run, punch: punches)
        done += 1
      }
    } catch {
      // What was half released stays leaked: counting it down twice would be worse.
      frees.restoreMature(Array(mature[min(done + 1, mature.count)...]))
      throw error
    }
    return !mature.isEmpty
  }
}
