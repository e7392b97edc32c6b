import BlockCore
import QCOW2Format

/// Changes to the image as a whole: one at a time, with the guest's requests kept out if need be.
extension Image {
  /// The worker number of administrative operations: one more than those that serve the guest.
  ///
  /// Its arena and its stamps belong to the holder of ``administration``.
  var internalWorker: Int { options.workers }

  /// Runs an operation that writes, alone among such operations.
  ///
  /// - Throws: ``ImageError/readOnly``, ``ImageError/writesStopped``, or what `body` throws.
  func administer(
    _ body: () async throws(ImageError) -> Void
  ) async throws(ImageError) {
    if options.readOnly { throw .readOnly }
    await administration.acquire()
    defer { administration.release() }
    do {
      try health.requireWrites()
      try await body()
    } catch {
      await report(error)
      throw error
    }
  }

  /// Runs `body` with no request in flight, and with everything durable that requests have changed;
  /// call inside ``administer(_:)``.
  ///
  /// Requests that come meanwhile wait. Flush rounds and the return of freed clusters go on; with
  /// no request in flight they find nothing but what `body` does.
  func exclusively(
    _ body: () async throws(ImageError) -> Void
  ) async throws(ImageError) {
    await gate.close(stamps)
    defer { gate.open() }
    try await flusher.flush()
    try await body()
  }
}
