import BlockCore
import DiskImages
import Glibc
import ImageJobs
import Logging
import QCOW2Engine
import Synchronization
import Uring

/// Gives leaks back beside the guest, on a thread of its own: see `LeakReturnJob`.
///
/// `LiveHost.returnLeaks(of:_:_:)` starts it for an image whose last session died.
final class LeakReturn: Sendable {
  /// For how many milliseconds the end of a device waits for what is left to do.
  static let patience = 1000

  /// What shows in the list of jobs.
  let live: LiveJob
  private let pace: LeakPace
  private let thread = Mutex<WorkerThread?>(nil)

  /// Starts.
  ///
  /// - Parameters:
  ///   - disk: Open for writing; stays open until ``finish()`` has returned.
  ///   - id: Among the jobs of the device.
  ///   - name: What messages begin with.
  ///   - reason: Why there may be leaks, in words.
  ///   - pace: How fast.
  ///   - noteSettled: Called when nothing is leaked any more.
  /// - Throws: The errno of the thread.
  init(
    of disk: any OpenDisk, id: Int, _ name: String, _ reason: String, pace: LeakPace = LeakPace(),
    noteSettled: @escaping @Sendable () -> Void
  ) throws(Errno) {
    let live = LiveJob(id: id, name: LeakReturnJob.name) {}
    self.live = live
    self.pace = pace
    Log.logger.info("\(name): \(reason): looking for clusters that it has left reserved")
    let started = try WorkerThread(name: "qublk-leaks", stackBytes: 4 << 20) {
      let start = MonotonicClock.nanoseconds()
      do throws(JobError) {
        let context = live.context(of: LeakReturnJob.Item.self)
        let result = try JobLoop.run { _ async throws(JobError) in
          try await LeakReturnJob(pace).run(on: disk, context)
        }
        if result.isComplete { noteSettled() }
        Self.log(result, name, disk, seconds: Double(MonotonicClock.nanoseconds() - start) / 1e9)
        live.end(.result(result.json))
      } catch {
        Log.logger.warning(
          "\(name): leaked clusters are left until the image is attached again: \(error.message)")
        live.end(.error(ControlError(error)))
      }
    }
    thread.withLock { $0 = started }
  }

  private static func log(
    _ result: LeakReturnResult, _ name: String, _ disk: any OpenDisk, seconds: Double
  ) {
    let bytes = result.returned * disk.allocationUnit
    var text = "\(name): "
    if result.returned == 0, result.lowered == 0 {
      text += "no leaked clusters"
    } else {
      text += "\(result.returned) leaked clusters given back, \(bytes) bytes"
    }
    if result.lowered > 0 { text += "; \(result.lowered) refcounts were too high" }
    text += ", after \((seconds * 1000).rounded() / 1000) s and \(result.looks) looks"
    if result.isComplete {
      Log.logger.info("\(text)")
    } else {
      Log.logger.warning("\(text): there may be more, which stay until the image is attached again")
    }
  }

  /// Ends the work, or lets it come to its end if that is near; then the disk may be closed.
  func finish() {
    pace.hurry()
    let end = MonotonicClock.nanoseconds() + UInt64(Self.patience) * 1_000_000
    while !live.hasEnded, MonotonicClock.nanoseconds() < end { usleep(2000) }
    live.cancellation.cancel()
    let thread = thread.withLock { thread in
      defer { thread = nil }
      return thread
    }
    thread?.join()
  }
}

extension InUseRecord.Cause {
  /// For messages.
  var text: String {
    switch self {
    case .daemon: "the image was in use when its daemon died"
    case .machine: "the image was in use when the machine went down"
    }
  }
}
