import BlockCore
import Glibc

/// Whether writes that are nothing but zeros become WRITE_ZEROES; the raw value is QEMU's word.
package enum DetectZeroes: String, Sendable, CaseIterable {
  case off
  /// They do; the clusters keep their place.
  case on
  /// They do, and the place may be given back.
  case unmap

  /// What serves the requests of a disk.
  func applied(to target: any BlockTarget) -> any BlockTarget {
    self == .off ? target : ZeroDetection(target, unmaps: self == .unmap)
  }
}

/// Stands before a disk and turns writes of zeros into WRITE_ZEROES.
///
/// Looks at all data that is written, so a write's data must be in plain memory: under zero copy, every
/// write is copied.
final class ZeroDetection: BlockTarget {
  private let target: any BlockTarget
  private let unmaps: Bool

  init(_ target: any BlockTarget, unmaps: Bool) {
    self.target = target
    self.unmaps = unmaps
  }

  var size: UInt64 { target.size }

  func plan(
    _ request: BlockRequest, at slot: RequestSlot,
    into plan: UnsafeMutableBufferPointer<HostTransfer>
  ) -> PlanResult {
    if request.operation == .write, !request.data.isMemory || Self.isZero(request) {
      return .needsService
    }
    return unsafe target.plan(request, at: slot, into: plan)
  }

  func finish(at slot: RequestSlot, failed: Bool) -> FinishResult {
    target.finish(at: slot, failed: failed)
  }

  func serve(_ request: BlockRequest, at slot: RequestSlot) async -> ServiceResult {
    guard request.operation == .write else { return await target.serve(request, at: slot) }
    guard request.data.isMemory else { return .needsMemory }
    guard Self.isZero(request) else { return await target.serve(request, at: slot) }
    return await target.serve(zeroes(request), at: slot)
  }

  private func zeroes(_ write: BlockRequest) -> BlockRequest {
    BlockRequest(
      .writeZeroes, offset: write.offset, length: write.length, isFUA: write.isFUA,
      keepsAllocation: !unmaps)
  }

  /// Whether all bytes of a write are zeros: the first is, and each is like the one before.
  private static func isZero(_ request: BlockRequest) -> Bool {
    guard let memory = unsafe request.data.memory, request.data.count > 0 else { return false }
    guard unsafe memory.load(as: UInt8.self) == 0 else { return false }
    return unsafe memcmp(memory, memory + 1, request.data.count - 1) == 0
  }
}
