package import DiskImages
import QCOW2Engine
import Uring

/// Runs a ``CompareJob``: opens both disks for reading, compares, closes them.
package enum CompareHost {
  /// Compares two disks.
  ///
  /// - Throws: ``CompareFailure``.
  package static func run(
    _ job: CompareJob, _ first: (format: DiskFormat, options: DiskImageOptions),
    _ second: (format: DiskFormat, options: DiskImageOptions), _ context: JobContext<NoValue>
  ) throws(CompareFailure) -> CompareJob.Result {
    let one = try open(first.format, first.options)
    defer { close(one) }
    let two = try open(second.format, second.options)
    defer { close(two) }
    do throws(JobError) {
      return try runBlocking { () async throws(JobError) in
        try await job.run(on: CompareJob.Disks(one, two), context)
      }
    } catch { throw CompareFailure(first.options.name, error) }
  }

  private static func open(
    _ format: DiskFormat, _ options: DiskImageOptions
  ) throws(CompareFailure) -> any OpenDisk {
    var options = options
    options.readOnly = true
    options.engine.workers = CompareJob.threads
    options.engine.slotsPerWorker = CompareJob.tasks
    do throws(DiskImageError) {
      return try runBlocking { [options] () async throws(DiskImageError) in
        try await format.open(options, size: 0)
      }
    } catch { throw CompareFailure(options.name, .open(error)) }
  }

  private static func close(_ disk: any OpenDisk) {
    runBlocking { () in try? await disk.close() }
  }
}

/// Why there is no answer.
package struct CompareFailure: Error {
  /// What messages call the image that the error is about.
  package let image: String
  /// What is wrong.
  package let error: JobError
  /// qemu-img's exit status: 2 not opened, 3 no answer of the mapping, 4 not read, 1 all others.
  package let status: Int32

  init(_ image: String, _ error: JobError) {
    self.error = error
    switch error {
    case .open: (self.image, status) = (image, 2)
    case .lookingUp(let disk, _, _): (self.image, status) = (disk, 3)
    case .reading(let disk, _, _): (self.image, status) = (disk, 4)
    default: (self.image, status) = (image, 1)
    }
  }
}
