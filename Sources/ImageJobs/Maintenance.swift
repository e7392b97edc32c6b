import DiskImages
import Uring

/// The background work of a disk that a job has to itself; confined to the thread of its ``JobLoop``.
@safe
final class Maintenance: @unchecked Sendable {  // why: confined to one thread
  private let disk: any OpenDisk
  private var hasStopped = false
  private var isWorking = false
  private var waiter: UnsafeContinuation<Void, Never>?

  init(_ disk: any OpenDisk) { self.disk = disk }

  /// Takes a step every so many milliseconds, until ``stop()``.
  func run(every milliseconds: Int) async {
    while !hasStopped, let loop = WorkerLoop.current, await loop.sleep(milliseconds: milliseconds) {
      if hasStopped { return }
      isWorking = true
      await disk.maintain()
      isWorking = false
      unsafe waiter?.resume()
      unsafe waiter = nil
    }
  }

  /// Ends the background work, and waits for the step that is under way.
  func stop() async {
    hasStopped = true
    guard isWorking else { return }
    unsafe await withUnsafeContinuation { unsafe waiter = unsafe $0 }
  }
}
