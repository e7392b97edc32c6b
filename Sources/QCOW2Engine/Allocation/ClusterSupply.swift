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
  private let durability: Durability
  private let faults: Faults
  /// Held by the one who returns clusters.
  private let maturing = AsyncMutex()
  private let punches: Bool

  init(
    _ parts: ImageParts, arenas: WorkerArenas, stamps: RequestStamps, _ durability: Durability,
    _ faults: Faults
  ) {
    self.faults = faults
    self.durability = durability
    allocator = parts.allocator
    self.arenas = arenas
    metadata = parts.metadata
    frees = parts.frees
    self.stamps = stamps
    packer = CompressedPacker(
      arenas, parts.allocator, alignment: parts.storage.file.traits.offsetAlignment)
    punches = parts.options.discardsToHost
  }

  /// Gives clusters back whose pointers are gone for good and that no request can still be at.
  ///
  /// - Returns: whether there were any.
  func returnMature() async throws(ImageError) -> Bool {
    await maturing.acquire()
    defer { maturing.release() }
    return try await returnHeld()
  }

  /// The same, unless somebody is at it already; a failure has been reported.
  func returnMatureIfIdle() async {
    guard maturing.tryAcquire() else { return }
    defer { maturing.release() }
    _ = try? await returnHeld()
  }

  /// Gives back what was let go of, and cuts the file behind what is in use; no request is running, and
  /// nobody returns clusters beside this.
  func close() async throws(ImageError) {
    let flusher = durability.flusher
    await maturing.acquire()
    defer { maturing.release() }
    // One pass makes what is pending durable, the next returns it. Bounded: what is still held
    // after that stays leaked, which is better than a close that does not end.
    for _ in 0..<4 where !frees.isEmpty {
      _ = try await returnHeld()
      try await flusher.flush()
    }
    try await packer.close()
    try await flusher.clean()
    await allocator.cutFile()
  }

  private func returnHeld() async throws(ImageError) -> Bool {
    maturing.assertHeld()
    // Looking at all stamps takes longer than this, and most times there is nothing to give back.
    guard frees.hasDurable else { return false }
    let mature = frees.takeMature(before: stamps.oldest())
    var done = 0
    do {
      for run in mature {
        try await allocator.release(run, punch: punches)
        done += 1
      }
    } catch {
      // What was half released stays leaked: counting it down twice would be worse.
      frees.endReturn(Array(mature[min(done + 1, mature.count)...]))
      await faults.report(error)
      throw error
    }
    frees.endReturn()
    if mature.isEmpty { return false }
    durability.noteDirty()
    return true
  }
}
