package import DiskImages
import QCOW2Engine

// Jobs on more than one disk of a chain.

extension OfflineHost {
  /// Commits an image into a backing file; both are opened under QEMU's locks.
  ///
  /// - Parameters:
  ///   - job: The job.
  ///   - base: Which backing file.
  ///   - options: How the image is opened; for reading, if it is not emptied.
  ///   - context: What the job tells its client with.
  /// - Throws: What the job throws, or ``JobError/open(_:)``.
  package static func run(
    _ job: CommitJob, into base: WritableBase, _ options: DiskImageOptions,
    _ context: JobContext<NoValue>
  ) throws(JobError) {
    var options = options
    options.writableBase = base
    options.engine.workers = job.threads
    options.engine.slotsPerWorker = job.tasks
    options.readOnly = !job.empties
    _ = try run(job, context) { [options] () async throws(DiskImageError) in
      let pair = try await DiskPair.open(options)
      // The base first: the image may be emptied, and what it had is there.
      return Opened(subject: pair, disks: [pair.base, pair.top])
    }
  }

  /// Gives an image another backing file.
  ///
  /// - Parameters:
  ///   - job: The job.
  ///   - options: How the image is opened.
  ///   - baseOptions: How the new backing file is opened, which the job names.
  ///   - context: What the job tells its client with.
  /// - Throws: What the job throws, or ``JobError/open(_:)``.
  package static func run(
    _ job: RebaseJob, _ options: DiskImageOptions, base baseOptions: DiskImageOptions,
    _ context: JobContext<NoValue>
  ) throws(JobError) {
    var options = options
    options.ignoresBacking = job.isUnsafe
    options.keepsSecrets = !job.isUnsafe
    _ = try run(job, context) { [options] () async throws(DiskImageError) in
      let image = try await DiskImage.open(options)
      do throws(DiskImageError) {
        guard !job.isUnsafe, let name = job.base, let format = job.format else {
          return Opened(subject: RebaseSubject(image: image, base: nil), disks: [image])
        }
        let base = try await image.openBacking(name, format: format, baseOptions)
        return Opened(
          subject: RebaseSubject(image: image, base: base),
          disks: [image] + (base.disk.map { [$0] } ?? []))
      } catch {
        try? await image.close()
        throw error
      }
    }
  }
}
