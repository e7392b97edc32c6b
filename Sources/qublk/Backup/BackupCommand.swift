import ArgumentParser
import DiskImages
import Glibc
import ImageJobs

/// `qublk backup`: what has changed since a bitmap was cleared, or all of a disk.
struct BackupCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "backup",
    abstract: "Copy what a persistent bitmap says has changed, or with --full all of a disk.",
    discussion: """
      A qcow2 target is a new image of the same size that has exactly the clusters with changes. With \
      -b it is based on the backup before it, and the chain reads as the disk. "qublk restore" writes \
      it into another image. A raw target without --full must be there: it is the copy of before, and \
      is brought up to date in place. Nobody else may use the image meanwhile.
      """)

  @Option(help: ArgumentHelp("The bitmap that says what has changed.", valueName: "bitmap"))
  var since: String
  @Flag(help: "Copy everything: the first backup, from which the bitmap counts.") var full = false
  @Flag(help: "Clear the bitmap when the backup is whole and durable.") var clear = false
  @Option(
    name: [.customShort("O"), .customLong("target-format")],
    help: "The format of the target: qcow2 or raw.")
  var targetFormat = "qcow2"
  @Option(
    name: [.customShort("b"), .customLong("backing")],
    help: "The backup before this one, which the target names as its backing file.")
  var backing: String?
  @Option(
    name: [.customShort("B"), .customShort("F"), .customLong("backing-format")],
    help: "The format of that backup. (default: qcow2)")
  var backingFormat: String?
  @OptionGroup var format: FormatOption
  @OptionGroup var naming: ImageNaming
  @OptionGroup var sourceCache: SourceCacheOption
  @OptionGroup var pace: PaceOptions
  @OptionGroup var progress: ProgressOption
  @OptionGroup var quiet: QuietOption
  @Argument(help: "The image.") var file: String
  @Argument(help: "The backup.") var target: String

  func run() throws {
    let isThere = unsafe access(target, F_OK) == 0
    if let problem = problem(isThere) { throw CopyRun.refuse(target, problem) }
    var wanted = NamedImage.Access()
    wanted.cache = sourceCache.sourceCache
    let image = try NamedImage(file, format: format.format ?? "qcow2", naming, wanted)
    try JobRunner.refuseServed(image)
    let facts = try JobRunner(isQuiet: true).run(BitmapFactsJob(bitmap: since), on: image)
    var job = ConvertJob()
    job.requests = pace.parallel
    job.since = full ? nil : since
    job.clears = clear ? since : nil
    job.targetIsZero = full
    let request = TargetRequest(
      name: target, format: targetFormat, options: options(facts.granularity), backing: backing,
      backingFormat: backing == nil ? nil : backingFormat ?? "qcow2", cache: "writeback",
      isThere: isThere)
    // Options of the source's name are not those of the target's.
    var plain = naming
    plain.imageOpts = false
    try CopyRun(progress: progress.progress, isQuiet: quiet.quiet, rateLimit: pace.rateLimit.bytes)
      .run(job, from: [(image.format, image.options)], to: try request.target(plain))
  }

  /// Clusters as large as what a bit stands for: what has changed is copied, and nothing else.
  private func options(_ granularity: UInt64) -> [String] {
    guard targetFormat == "qcow2", !full else { return [] }
    return ["cluster_size=\(min(max(granularity, 4096), 65536))"]
  }

  private func problem(_ isThere: Bool) -> String? {
    if !["qcow2", "raw"].contains(targetFormat) {
      return "Unknown file format '\(targetFormat)': expected qcow2 or raw"
    }
    if let problem = pace.problem { return problem }
    if full, backing != nil { return "a full backup has no backing file: leave -b or --full out" }
    if targetFormat == "raw", backing != nil { return "a raw file has no backing file" }
    if backing == nil, backingFormat != nil { return "-B says the format of -b, which is missing" }
    if targetFormat == "raw", !full, !isThere {
      return "no such file: an incremental backup in raw format is written over the full copy of "
        + "before: make that with --full, or use -O qcow2"
    }
    if isThere, targetFormat == "qcow2" || full {
      return "the file is there: a backup is not written over another: remove it first"
    }
    return nil
  }
}
