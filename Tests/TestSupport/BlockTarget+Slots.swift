package import BlockCore

// Tests name a slot by its two numbers.

extension BlockTarget {
  package func plan(
    _ request: BlockRequest, worker: Int, slot: Int,
    into plan: UnsafeMutableBufferPointer<HostTransfer>
  ) -> PlanResult {
    self.plan(request, at: RequestSlot(worker: worker, number: slot), into: plan)
  }

  package func finish(worker: Int, slot: Int, failed: Bool) -> FinishResult {
    finish(at: RequestSlot(worker: worker, number: slot), failed: failed)
  }

  package func serve(_ request: BlockRequest, worker: Int, slot: Int) async -> ServiceResult {
    await serve(request, at: RequestSlot(worker: worker, number: slot))
  }
}
