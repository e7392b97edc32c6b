import BlockCore
import Synchronization
import Uring

/// Changes of the files that a worker's ring knows, on their way from other threads to the worker.
///
/// The ring's table belongs to the worker's thread. Whoever wants a change waits here until the worker has
/// made it, or has ended.
final class FileChanges: Sendable {
  struct Change {
    /// The slot of the ring's table.
    let slot: Int
    /// nil takes the file out.
    let descriptor: Int32?

    init(slot: Int, _ descriptor: Int32?) {
      self.slot = slot
      self.descriptor = descriptor
    }
  }

  private struct Waiting {
    let change: Change
    let answer: CheckedContinuation<Errno?, Never>
  }

  private struct State {
    var waiting: [Waiting] = []
    var hasEnded = false
  }

  private let state = Mutex(State())

  /// Has the worker make `change`, and returns when it has.
  ///
  /// - Throws: `noDevice` if the worker has ended before, else the errno of the kernel.
  func make(_ change: Change, on worker: WorkerExecutor) async throws(Errno) {
    let errno: Errno? = await withCheckedContinuation { answer in
      let isTaken = state.withLock { state in
        guard !state.hasEnded else { return false }
        state.waiting.append(Waiting(change: change, answer: answer))
        return true
      }
      guard isTaken else { return answer.resume(returning: .noDevice) }
      Task(executorPreference: worker) { self.makeAll() }
    }
    if let errno { throw errno }
  }

  /// On the worker: makes what is waiting.
  private func makeAll() {
    guard let loop = WorkerLoop.current else { return }
    for next in take(ending: false) {
      do throws(Errno) {
        try loop.setFile(next.change.descriptor, slot: next.change.slot)
        next.answer.resume(returning: nil)
      } catch { next.answer.resume(returning: error) }
    }
  }

  /// The worker has ended: what waits is not made, and nothing will be.
  func end() {
    for next in take(ending: true) { next.answer.resume(returning: .noDevice) }
  }

  private func take(ending: Bool) -> [Waiting] {
    state.withLock { state in
      defer { state.waiting = [] }
      if ending { state.hasEnded = true }
      return state.waiting
    }
  }
}
