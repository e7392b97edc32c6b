package import BlockCore
import QCOW2Format

// The slow path: whole requests, suspending as needed.

extension Image {
  package func serve(_ request: BlockRequest, at slot: RequestSlot) async -> ServiceResult {
    do throws(ImageError) {
      if fresh.isPending(stamps.index(at: slot)) {
        try await planner.serveFresh(at: slot)
        return .done
      }
      if reader.guestData.isTransformed && !request.data.isMemory { return .needsMemory }
      do { try await attempt(request, at: slot) } catch {
        guard error.errno == .noSpace else { throw error }
        try await attemptAgain(request, after: error, at: slot)
      }
      return .done
    } catch {
      if case .needsMemory = error { return .needsMemory }
      await faults.report(error, of: request)
      return .failed(error.errno)
    }
  }

  /// Tries a request once more that failed for want of room.
  ///
  /// Space may have been freed that only waited for being durable. A discard needs no room to be right:
  /// it is a hint, and what cannot be let go of stays.
  private func attemptAgain(
    _ request: BlockRequest, after failure: ImageError, at slot: RequestSlot
  ) async throws(ImageError) {
    do throws(ImageError) {
      guard try await reclaimSpace() else { throw failure }
      try await attempt(request, at: slot)
    } catch {
      guard request.operation == .discard, error.errno == .noSpace else { throw error }
    }
  }

  private func attempt(
    _ request: BlockRequest, at slot: RequestSlot
  ) async throws(ImageError) {
    if request.operation == .flush {
      guard admission.inBounds(request) else { throw .badRequest }
      return try await durability.flush()
    }
    try await admission.admit(request, at: slot)
    defer { admission.leave(at: slot) }
    try await carryOut(request, worker: slot.worker)
    if request.isFUA { try await durability.flush() }
  }

  private func carryOut(_ request: BlockRequest, worker: Int) async throws(ImageError) {
    if request.operation != .read {
      if options.readOnly { throw .readOnly }
      try health.requireWrites()
      if request.operation != .flush {
        try await changes?.record(request.offset, request.length)
      }
    }
    switch request.operation {
    case .read:
      if options.copyOnRead && reader.hasBacking {
        try await writer.readKeeping(request, worker: worker)
      } else {
        try await reader.read(request, worker: worker)
      }
    case .write:
      try await mapping.withSlicesAhead(of: request) { () async throws(ImageError) in
        try await self.writer.write(request, worker: worker)
      }
    case .discard: try await writer.discard(request, worker: worker)
    case .writeZeroes: try await writer.zero(request, worker: worker)
    case .flush: break
    }
  }
}
