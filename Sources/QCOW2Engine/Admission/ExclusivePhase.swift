import BlockCore
import QCOW2Format

/// Changes to the image as a whole: one at a time, with the guest's requests kept out if need be.
extension Image {
  /// Runs an operation that writes, alone among such operations.
  ///
  /// The number comes first: whoever has ``administration`` never waits for one.
  ///
  /// - Throws: ``ImageError/readOnly``, ``ImageError/writesStopped``, or what `body` throws.
  func administer(
    _ body: (JobSlot) async throws(ImageError) -> Void
  ) async throws(ImageError) {
    if options.readOnly { throw .readOnly }
    try await withShortSlot { (slot) async throws(ImageError) in
      await administration.acquire()
      defer { administration.release() }
      do throws(ImageError) {
        try health.requireWrites()
        try await body(slot)
      } catch {
        await faults.report(error)
        throw error
      }
    }
  }

  /// Runs `body` with no request in flight, and with everything durable that requests have changed.
  ///
  /// Requests that come meanwhile wait, and so does who else wants this. Flush rounds and the return
  /// of freed clusters go on; with no request in flight they find nothing but what `body` does. The
  /// caller has no request in flight itself.
  func exclusively(
    _ body: () async throws(ImageError) -> Void
  ) async throws(ImageError) {
    await exclusion.acquire()
    defer { exclusion.release() }
    // What is written back now is not written back while requests wait.
    if durability.flusher.hasDirtySlices { try await durability.flusher.flush() }
    await gate.close(stamps)
    defer { gate.open() }
    try await durability.flusher.flush()
    try await body()
  }

  /// Runs `body` with no request in flight, without waiting for anything to be written.
  ///
  /// - Returns: What `body` returns, and for how many nanoseconds requests were kept out.
  func cut<R>(_ body: () -> R) async -> (result: R, nanoseconds: UInt64) {
    await exclusion.acquire()
    defer { exclusion.release() }
    await gate.close(stamps)
    let result = body()
    return (result, gate.open())
  }
}
