import ArgumentParser
import DiskImages
import ImageJobs

/// `qublk restore`: writes what a backup has into an image.
struct RestoreCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "restore", abstract: "Write the clusters that a backup has into an image.",
    discussion: """
      Only what the backup itself has is written, not what its backing file has: restore the full \
      backup first, then each later one in its order. Ended early, the command can be given again.
      """)

  @OptionGroup var format: FormatOption
  @OptionGroup var naming: ImageNaming
  @OptionGroup var cache: CacheOption
  @OptionGroup var pace: PaceOptions
  @OptionGroup var progress: ProgressOption
  @OptionGroup var quiet: QuietOption
  @Argument(help: "A backup in qcow2 format.") var delta: String
  @Argument(help: "The image that is written: qcow2 or raw.") var file: String

  func run() throws {
    if let problem = pace.problem { throw CopyRun.refuse(file, problem) }
    var plain = naming
    plain.imageOpts = false
    let source = try NamedImage(delta, format: nil, plain)
    guard source.format == .qcow2 else {
      throw CopyRun.refuse(
        delta, "a raw file does not say which parts it has: expected a backup in qcow2 format")
    }
    var writes = NamedImage.Access()
    writes.isReadOnly = false
    writes.cache = cache.cache
    let image = try NamedImage(file, format: format.format, naming, writes)
    try JobRunner.refuseServed(image)
    var job = ConvertJob()
    job.requests = pace.parallel
    job.targetHasBacking = true
    var target = ConvertTarget(format: image.format, options: image.options)
    target.syncs = true
    try CopyRun(progress: progress.progress, isQuiet: quiet.quiet, rateLimit: pace.rateLimit.bytes)
      .run(job, from: [(source.format, source.options)], to: target)
  }
}
