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

  /// Runs a job on a disk and all that it refers to, with a ring of its own on the calling thread.
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
    return try JobLoop.run { [options] (loop) async throws(JobError) in
      let disk = try await open(format, options)
      let maintenance = Maintenance(disk)
      loop.spawn { await maintenance.run(every: maintenanceInterval) }
      let outcome: Result<Job.Outcome, JobError>
      do throws(JobError) { outcome = .success(try await job.run(on: disk, context)) } catch {
        outcome = .failure(error)
      }
      await maintenance.stop()
      do throws(DiskImageError) { try await disk.close() } catch {
        // The job's own failure came first.
        _ = try outcome.get()
        throw .open(error)
      }
      return try outcome.get()
    }
  }

  private static func open(
    _ format: DiskFormat, _ options: DiskImageOptions
  ) async throws(JobError) -> any OpenDisk {
    do throws(DiskImageError) { return try await format.open(options, size: 0) } catch {
      throw .open(error)
    }
  }
}
