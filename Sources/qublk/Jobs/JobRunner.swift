import ArgumentParser
import Daemon
import DiskImages
import ImageJobs

/// Runs jobs for commands: on an image that the command opens, or by the daemon that has it open.
///
/// What is printed and how the command ends is the same both ways.
struct JobRunner {
  /// `-p`.
  var showsProgress = false
  /// `-q`: neither output nor progress.
  var isQuiet = false
  /// Parts of an answer for people are printed; not where the answer is JSON.
  var showsOutput = true
  /// The daemon that has the image does the work; else this process does, whoever has the image.
  var asksDaemon = true
  /// The bytes a second that the job may move; 0 for any number.
  var rateLimit: UInt64 = 0

  /// Runs a job on the disk and gives its items to `take`, on any thread, one after the other.
  ///
  /// - Throws: The exit status, after an error line.
  func run<Job: DiskJob>(
    _ job: Job, on image: NamedImage, take: @escaping @Sendable (Job.Item) -> Void = { _ in }
  ) throws -> Job.Outcome {
    try watched(image.name) { (context: JobContext<Job.Item>) in
      if asksDaemon, let served = ServedImage.find(image.options.path) {
        return try runLive(job, on: served, image.name, context, take)
      }
      do throws(JobError) {
        return try OfflineHost.run(job, on: image.format, image.options, context)
      } catch { throw ToolOutput.fail(image.name, error) }
    } take: {
      take($0)
    }
  }

  /// Runs a job on the bytes of an image file.
  ///
  /// - Throws: The exit status, after an error line.
  func run<Job: FileJob>(_ job: Job, on image: NamedImage) throws -> Job.Outcome {
    try watched(image.name) { (context: JobContext<Job.Item>) in
      if asksDaemon, let served = ServedImage.find(image.options.path) {
        return try runLive(job, on: served, image.name, context) { _ in }
      }
      do throws(JobError) {
        return try OfflineHost.run(
          job, on: image.options.path, sharesByForce: image.options.locks == .none, context)
      } catch { throw ToolOutput.fail(image.name, error) }
    } take: { _ in
    }
  }

  /// Refuses an image that a daemon has: for commands that only work on images that nobody uses.
  ///
  /// - Throws: The exit status, after an error line with the name of the device.
  static func refuseServed(_ image: NamedImage) throws(ExitCode) {
    guard let served = ServedImage.find(image.options.path) else { return }
    throw refuse(image.name, served)
  }

  /// Writes one error line for a job that failed, and ends the command with exit status 1; names the device
  /// if a backing file is in use as one.
  static func fail(_ image: NamedImage, _ error: JobError) -> ExitCode {
    if case .open(let error) = error, case .lock = error.reason,
      let path = error.path(from: image.options.path), let served = ServedImage.find(path)
    {
      return refuse("\(image.name): \(path)", served)
    }
    return ToolOutput.fail(image.name, error)
  }

  private static func refuse(_ name: String, _ served: ServedImage) -> ExitCode {
    ToolOutput.note(
      name,
      "in use: it is attached as \(served.device.path): detach it first with \"qublk del "
        + "\(served.device.path)\"")
    return ExitCode(1)
  }

  private func runLive<Job: ImageJob>(
    _ job: Job, on served: ServedImage, _ name: String, _ context: JobContext<Job.Item>,
    _ take: (Job.Item) -> Void
  ) throws -> Job.Outcome {
    guard served.takes(Job.self) else { throw Self.refuse(name, served) }
    return try served.run(job, context, take: take)
  }

  /// Runs `body` while signals and progress are looked after.
  func watched<Item, Outcome>(
    _ name: String, _ body: (JobContext<Item>) throws -> Outcome,
    take: @escaping @Sendable (Item) -> Void
  ) throws -> Outcome {
    let cancellation = JobCancellation()
    let progress = JobProgress()
    let context = JobContext<Item>(
      progress: progress, cancellation: cancellation, rate: RateLimit(bytesPerSecond: rateLimit),
      tell: ToolOutput.teller(name, output: showsOutput && !isQuiet),
      take: { (item) async throws(JobError) in take(item) })
    let watch = JobWatch(progress, cancellation, shows: showsProgress, isQuiet: isQuiet)
    let result = Result { try body(context) }
    try watch.end(succeeded: (try? result.get()) != nil)
    return try result.get()
  }
}
