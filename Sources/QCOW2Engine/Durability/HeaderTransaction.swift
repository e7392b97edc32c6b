import QCOW2Format

extension HeaderEditor {
  /// How what a transaction has written becomes durable before the header points at it.
  enum Barrier {
    /// By a flush round, which brings the refcounts of new clusters to the host file as well.
    case round(FlushCoordinator)
    /// By a sync alone: the steps have written the refcounts themselves.
    case sync
  }

  /// Changes what the header points at: steps | barrier | one sector.
  ///
  /// The steps write only where nothing points yet, so a crash leaves the old state or the new one, and
  /// at worst the clusters of the other leaked. What only the old state needed may be given up
  /// afterwards. If steps or barrier fail, the header is as before, and `undo` gives the new places back.
  func commit(
    _ flip: HeaderPatch, after barrier: Barrier, of steps: () async throws(ImageError) -> Void,
    undo: () async -> Void = {}
  ) async throws(ImageError) {
    try await commit({ _ in flip }, after: barrier, of: steps, undo: undo)
  }

  /// The same for a flip that depends on the header as it is at that moment.
  func commit(
    _ flip: (Header) -> HeaderPatch, after barrier: Barrier,
    of steps: () async throws(ImageError) -> Void, undo: () async -> Void = {}
  ) async throws(ImageError) {
    do throws(ImageError) {
      try await steps()
      switch barrier {
      case .round(let flusher): try await flusher.flush()
      case .sync: try await storage.sync()
      }
    } catch {
      await undo()
      throw error
    }
    // A failure of this leaves the old header or the new one: nothing is given back.
    try await edit(flip)
  }
}
