package import DiskImages
import QCOW2Tools
import Uring

/// Runs jobs on images that no other process uses: opens the image under QEMU's locks, runs the job on
/// it, closes it.
package enum OfflineHost {
  /// Milliseconds between two steps of an engine's background work.
  private static let maintenanceInterval = 500

  /// Runs a job on the bytes of the image file at `path`.
  ///
  /// The calling thread does all of the work, with blocking calls.
  ///
  /// - Parameters:
  ///   - job: The job.
  ///   - path: The image.
  ///   - sharesByForce: Takes no locks (`-U`): for jobs that do not change the image.
  ///   - context: What the job tells its client with.
  /// - Returns: What the job ended with.
  /// - Throws: What the job throws, or ``JobError/file(_:)`` for an image that cannot be opened.
  package static func run<Job: FileJob>(
    _ job: Job, on path: String, sharesByForce: Bool = false, _ context: JobContext<Job.Item>
  ) throws(JobError) -> Job.Outcome {
    let bytes: FileBytes
    do throws(ToolError) {
      bytes =
        if job.changesImage {
          try FileBytes(path: path, access: .readWrite, lock: ToolLock.writer)
        } else {
          try FileBytes(
            path: path, access: .readOnly, lock: sharesByForce ? ToolLock.none : ToolLock.reader)
        }
    } catch { throw .file(error) }
    let file = ImageFile(bytes, path: path)
    return try runBlocking { () async throws(JobError) in try await job.run(on: file, context) }
  }

  /// Runs a job on a disk and all that it refers to, on the calling thread.
  ///
  /// A job that changes the image has a ring, and the engine's background work beside it. One that looks at
  /// an image looks at one table after the other: its reads block, which is quicker than a ring where the
  /// page cache has the file.
  ///
  /// - Parameters:
  ///   - job: The job.
  ///   - format: What the image is.
  ///   - options: How it is opened; nothing is written if the job does not change the image.
  ///   - context: What the job tells its client with.
  /// - Returns: What the job ended with.
  /// - Throws: What the job throws; else ``JobError/open(_:)`` for an image that cannot be opened, or
  ///   whose changes cannot be written back.
  package static func run<Job: DiskJob>(
    _ job: Job, on format: DiskFormat, _ options: DiskImageOptions, _ context: JobContext<Job.Item>
  ) throws(JobError) -> Job.Outcome {
    var options = options
    if !job.changesImage { options.readOnly = true }
    let open = { @Sendable [options] () async throws(DiskImageError) -> any OpenDisk in
      try await format.open(options, size: 0)
    }
    if !job.changesImage { return try look(job, context, open) }
    return try run(job, context) { () async throws(DiskImageError) in
      let disk = try await open()
      return Opened(subject: disk, disks: [disk])
    }
  }

  /// Runs a job that changes nothing, with blocking reads.
  private static func look<Job: DiskJob>(
    _ job: Job, _ context: JobContext<Job.Item>,
    _ open: @escaping @Sendable () async throws(DiskImageError) -> any OpenDisk
  ) throws(JobError) -> Job.Outcome {
    try runBlocking { () async throws(JobError) in
      let disk: any OpenDisk
      do throws(DiskImageError) { disk = try await open() } catch { throw .open(error) }
      let outcome: Result<Job.Outcome, JobError>
      do throws(JobError) {
        outcome = .success(try await job.run(on: disk, context))
      } catch { outcome = .failure(error) }
      try await close([disk], after: outcome)
      return try outcome.get()
    }
  }

  /// What a job works on, and the disks that are to be looked after meanwhile and closed in this order.
  struct Opened<Subject: Sendable>: Sendable {
    let subject: Subject
    let disks: [any OpenDisk]
  }

  /// Runs a job on what `open` opens, with a ring of its own on the calling thread.
  static func run<Job: ImageJob>(
    _ job: Job, _ context: JobContext<Job.Item>,
    _ open: @escaping @Sendable () async throws(DiskImageError) -> Opened<Job.Subject>
  ) throws(JobError) -> Job.Outcome where Job.Subject: Sendable {
    try JobLoop.run { (loop) async throws(JobError) in
      let opened: Opened<Job.Subject>
      do throws(DiskImageError) { opened = try await open() } catch { throw .open(error) }
      let maintenance = opened.disks.map(Maintenance.init)
      for one in maintenance {
        loop.spawn { await one.run(every: maintenanceInterval) }
      }
      let outcome: Result<Job.Outcome, JobError>
      do throws(JobError) {
        outcome = .success(try await job.run(on: opened.subject, context))
      } catch { outcome = .failure(error) }
      for one in maintenance { await one.stop() }
      try await close(opened.disks, after: outcome)
      return try outcome.get()
    }
  }

  /// Closes all disks; the job's own failure comes first, then that of the first disk.
  private static func close<R>(
    _ disks: [any OpenDisk], after outcome: Result<R, JobError>
  ) async throws(JobError) {
    var failure: DiskImageError?
    for disk in disks {
      do throws(DiskImageError) { try await disk.close() } catch { failure = failure ?? error }
    }
    _ = try outcome.get()
    if let failure { throw .open(failure) }
  }
}
