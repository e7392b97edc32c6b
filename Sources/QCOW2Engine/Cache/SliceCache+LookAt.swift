import BlockCore

// Look-ups that change nothing, and so depend on no write.

extension SliceCache {
  /// Runs `body` on the slice, which it must not change.
  ///
  /// Loads the slice if there is a slot for it. If all slots of the stripe are dirty, the slice is read
  /// from the host file into memory of its own: it is not in the cache, so the host file has its
  /// current bytes. So a look-up works when nothing can be written back: after a failed sync, after
  /// corruption was found, and on a full host.
  ///
  /// - Throws: what `storage` throws while reading.
  func lookAt<R>(
    _ key: HostOffset, storage: ImageStorage, _ body: (UnsafeRawPointer) -> R
  ) async throws(ImageError) -> R {
    while true {
      let claims = claimCount(key)
      switch lookUp(key, { slice in unsafe body(slice.bytes) }) {
      case .done(let result): return result
      case .load(let slot, let memory):
        return unsafe try await load(key, slot, memory, storage) { slice in
          unsafe body(slice.bytes)
        }
      case .wait(let version): await waitForChange(key, since: version)
      case .full:
        let copy = IOBuffer(count: sliceSize)
        defer { withExtendedLifetime(copy) {} }
        try await storage.read(into: copy, at: key)
        // Where no slot was claimed meanwhile, nobody can have loaded the slice and changed it.
        if claimCount(key) == claims { return unsafe body(UnsafeRawPointer(copy.base)) }
      }
    }
  }

  /// How often a slot of the slice's stripe was claimed.
  private func claimCount(_ key: HostOffset) -> UInt64 {
    stripe(hash(key.bytes)).withLock { $0.claimCount }
  }
}
