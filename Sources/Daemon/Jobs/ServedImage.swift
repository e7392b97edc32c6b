import BlockCore
import Glibc
package import ImageJobs
import JSON

/// An image that a daemon of this machine serves, as commands find it.
package struct ServedImage {
  /// The device that it is.
  package let device: DeviceName

  /// Finds the daemon that has the file at `path` as its image, by device and inode.
  ///
  /// - Returns: nil if none has.
  package static func find(_ path: String) -> ServedImage? {
    var status = stat()
    guard unsafe stat(path, &status) == 0 else { return nil }
    let boot = Boot.id
    for id in StateDirectory.known() {
      let directory = StateDirectory(id: id)
      guard let state = directory.read(), state.boot == boot,
        state.imageDevice == UInt64(status.st_dev), state.imageInode == UInt64(status.st_ino),
        directory.hasDaemon
      else { continue }
      return ServedImage(device: DeviceName(id: id))
    }
    return nil
  }

  /// Whether a running device takes this job.
  package func takes<Job: ImageJob>(_ job: Job.Type) -> Bool { LiveHost.knows(Job.name) }

  /// Has the daemon run a job.
  ///
  /// - Parameters:
  ///   - job: The job.
  ///   - context: Gets what the job tells meanwhile. Its cancellation cancels the job.
  ///   - take: Gets the items, in their order.
  /// - Returns: What the job ended with.
  /// - Throws: What the daemon says against it, or why it could not be asked.
  package func run<Job: ImageJob>(
    _ job: Job, _ context: JobContext<Job.Item>, take: (Job.Item) -> Void
  ) throws(CommandError) -> Job.Outcome {
    let request = ControlRequest.job(Job.name, job.arguments)
    var isUnreadable = false
    let daemon = DeviceDaemon(device)
    let result = try daemon.ask(request, isCancelled: { context.cancellation.isCancelled }) {
      message in
      switch message {
      case .progress(let now): context.progress.follow(now)
      case .told(let message): context.tell(message)
      case .items(let values):
        for value in values {
          if let item = Job.Item(json: value) { take(item) } else { isUnreadable = true }
        }
      case .wait, .result, .error: break
      }
    }
    guard let result else { throw .daemonLost(device) }
    guard !isUnreadable, let outcome = Job.Outcome(json: result) else {
      throw .daemonRefused(device, "its answer to \"\(Job.name)\" cannot be read")
    }
    return outcome
  }
}
