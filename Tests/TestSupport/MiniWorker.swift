package import BlockCore
import QCOW2Engine

/// Carries out requests as the data plane does: `plan` → host transfers → `finish`, else
/// `serve`.
package struct MiniWorker: Sendable {
  package let target: any BlockTarget
  /// What the numbers in host transfers stand for.
  package let files: [any HostFile]
  package let worker: Int

  package init(target: any BlockTarget, file: any HostFile, worker: Int) {
    self.init(target: target, files: [file], worker: worker)
  }

  package init(target: any BlockTarget, files: [any HostFile], worker: Int) {
    self.target = target
    self.files = files
    self.worker = worker
  }

  /// Carries out one request, on the hit path first if `plans`; the errno if it failed.
  package func perform(_ request: BlockRequest, slot: Int, plans: Bool = true) async -> Errno? {
    if plans, let transfers = plan(request, slot) {
      var failure: Errno?
      for transfer in transfers where failure == nil {
        do { try await carryOut(transfer, request) } catch { failure = error }
      }
      if target.finish(worker: worker, slot: slot, failed: failure != nil) == .done {
        return failure
      }
    }
    return await target.serve(request, worker: worker, slot: slot).errno
  }

  private func plan(_ request: BlockRequest, _ slot: Int) -> [HostTransfer]? {
    withUnsafeTemporaryAllocation(of: HostTransfer.self, capacity: 8) { plan in
      switch target.plan(request, worker: worker, slot: slot, into: plan) {
      case .needsService: nil
      case .transfers(let count): Array(plan[0..<count])
      }
    }
  }

  private func carryOut(_ transfer: HostTransfer, _ request: BlockRequest) async throws(Errno) {
    let data = request.data.slice(Int(transfer.dataOffset), Int(transfer.length))
    let file = files[Int(transfer.file)]
    switch (transfer.kind, request.operation) {
    case (.zeroes, _): try await file.fillWithZeroes(data)
    case (.file, .read): try await file.read(into: data, at: transfer.hostOffset)
    case (.file, _): try await file.write(from: data, at: transfer.hostOffset)
    }
  }
}
