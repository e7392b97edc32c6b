import ArgumentParser
import DiskImages
import ImageJobs

/// `qublk commit`: an image's data goes down into its backing file.
struct CommitCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "commit", abstract: "Commit an image to its backing file.",
    discussion: """
      The image is emptied when all of its data is durable in the backing file, unless -d or -b is \
      given. With -b, images between this one and the base must not be used any more afterwards, but \
      through this one. A commit that was interrupted has changed nothing that the image's user can \
      see: run it again.
      """)

  @OptionGroup var format: FormatOption
  @OptionGroup var naming: ImageNaming
  @OptionGroup var cache: CacheOption
  @Flag(name: [.customShort("d"), .customLong("drop")], help: "Do not empty the image in the end.")
  var drop = false
  @Option(
    name: [.customShort("b"), .customLong("base")],
    help: ArgumentHelp(
      "The image of the backing chain to commit into. (default: the image's backing file)",
      discussion:
        "Implies -d. A relative name counts from the directory of the image that names it."))
  var base: String?
  @Option(
    name: [.customShort("r"), .customLong("rate-limit")], help: "The most bytes a second to move.")
  var rateLimit: ByteSize?
  @OptionGroup var progress: ProgressOption
  @OptionGroup var quiet: QuietOption
  @Argument(help: "The image.") var file: String

  func run() throws {
    let image = try NamedImage(
      file, format: format.format, naming, .init(isReadOnly: false, cache: cache.cache))
    try JobRunner.refuseServed(image)
    guard image.format == .qcow2 else {
      ToolOutput.note(file, "Image does not have a backing file")
      throw ExitCode(1)
    }
    let runner = JobRunner(
      showsProgress: progress.progress, isQuiet: quiet.quiet, rateLimit: rateLimit?.bytes ?? 0)
    let job = CommitJob(empties: !drop && base == nil)
    try runner.watched(file) { (context: JobContext<NoValue>) in
      do throws(JobError) {
        try OfflineHost.run(job, into: base.map { .named($0) } ?? .next, image.options, context)
      } catch { throw JobRunner.fail(image, error) }
    } take: { _ in
    }
    if !quiet.quiet { try ToolOutput.write("Image committed.\n") }
  }
}
