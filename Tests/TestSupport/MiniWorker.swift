package import BlockCore
import QCOW2Engine
import Serving

/// Carries out requests as the program does, on files of the tests.
package struct MiniWorker: Sendable {
  private let requests: FileRequests

  package init(target: any BlockTarget, file: any HostFile, worker: Int) {
    self.init(target: target, files: [file], worker: worker)
  }

  /// `files` are what the numbers in host transfers stand for.
  package init(target: any BlockTarget, files: [any HostFile], worker: Int) {
    requests = FileRequests(target, files: files, worker: worker)
  }

  /// Carries out one request, on the hit path first if `plans`; the errno if it failed.
  package func perform(_ request: BlockRequest, slot: Int, plans: Bool = true) async -> Errno? {
    await requests.perform(request, slot: slot, plans: plans)
  }
}
