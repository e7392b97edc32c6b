package import BlockCore
import QCOW2Format

// The hit path: what can be mapped with resident slices alone. No allocation, no waiting.

extension Image {
  package func plan(
    _ request: BlockRequest, at slot: RequestSlot,
    into plan: UnsafeMutableBufferPointer<HostTransfer>
  ) -> PlanResult {
    assert(!plan.isEmpty)
    switch request.plainOperation {
    case .read where hits.plansReads:
      if unsafe planHit(request, at: slot, isWrite: false, into: plan) {
        return .transfers(count: 1)
      }
    case .write where hits.plansWrites && health.isGoodInPlace:
      if unsafe planHit(request, at: slot, isWrite: true, into: plan) {
        return .transfers(count: 1)
      }
    default: break
    }
    // Stamps the request anew if it was stamped above: what was looked at for nothing is forgotten.
    return unsafe planner.plan(request, at: slot, into: plan)
  }

  /// Stamps a request and plans it, if it lies in one plain cluster; inlined twice, since each kind
  /// then knows what it looks for.
  ///
  /// - Returns: whether it did; if not, the stamp stays.
  @inline(__always) private func planHit(
    _ request: BlockRequest, at slot: RequestSlot, isWrite: Bool,
    into plan: UnsafeMutableBufferPointer<HostTransfer>
  ) -> Bool {
    stamps.enter(at: slot)
    guard gate.isOpen(untracked: isWrite) else { return false }
    let host = hits.host(request.offset.bytes, request.length, isWrite: isWrite, size: size)
    guard host != 0 else { return false }
    unsafe plan[0] = HostTransfer(
      kind: .file, file: hits.file, length: UInt32(truncatingIfNeeded: request.length),
      dataOffset: 0, hostOffset: HostOffset(host))
    return true
  }

  package func finish(at slot: RequestSlot, failed: Bool) -> FinishResult {
    let index = stamps.index(at: slot)
    if fresh.isPending(index) {
      return finishFresh(at: slot, failed: failed)
    }
    stamps.exit(index)
    return gate.isQuiet ? .done : finishWatched(index)
  }

  // What is rare lies in functions of its own, so that `finish` needs no stack.

  @inline(never) private func finishFresh(at slot: RequestSlot, failed: Bool) -> FinishResult {
    planner.finishFresh(at: slot, failed: failed)
  }

  @inline(never) private func finishWatched(_ index: Int) -> FinishResult {
    gate.noteExit(index)
    return .done
  }
}
