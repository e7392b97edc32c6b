import QCOW2Format

extension Image {
  /// Whether the header asks for lazy refcounts.
  package var hasLazyRefcounts: Bool { header.compatible.contains(.lazyRefcounts) }

  /// Turns lazy refcounts on or off while requests run; the image has version 3.
  ///
  ///     on:    the header says so | rounds may leave refcounts in memory
  ///     off:   a round writes all refcounts, and DIRTY goes | the header says so
  ///
  /// A crash leaves the old setting or the new one. Waits while a snapshot is taken or deleted.
  ///
  /// - Throws: ``ImageError/readOnly``, ``ImageError/writesStopped``, or what failed; the setting is the old
  ///   one then, unless writing has stopped altogether.
  package func setLazyRefcounts(_ isOn: Bool) async throws(ImageError) {
    if options.readOnly { throw .readOnly }
    await snapshotting.acquire()
    defer { snapshotting.release() }
    do throws(ImageError) {
      try health.requireWrites()
      try await isOn ? beginLaziness() : endLaziness()
    } catch {
      await faults.report(error)
      throw error
    }
  }

  private func beginLaziness() async throws(ImageError) {
    try await durability.headerEditor.edit { .compatible($0.compatible.union(.lazyRefcounts)) }
    durability.flusher.lazy.turn(on: true)
  }

  private func endLaziness() async throws(ImageError) {
    let lazy = durability.flusher.lazy
    let wasOn = lazy.isOn
    lazy.turn(on: false)
    do throws(ImageError) {
      // A round that began before still leaves refcounts out; this one comes after it.
      try await durability.flusher.clean()
      try await durability.headerEditor.edit {
        .compatible($0.compatible.subtracting(.lazyRefcounts))
      }
    } catch {
      lazy.turn(on: wasOn)
      throw error
    }
  }
}
