import ArgumentParser
import DiskImages
import ImageJobs
import QCOW2Codec
import QCOW2Tools

/// `qublk compact`: a smaller file for an image; qemu-img has no such command.
struct CompactCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "compact",
    abstract: "Make the file of a qcow2 image as small as what the image has.",
    discussion: """
      Clusters at the end of the file move down into free places, and the file is cut. What the disk, \
      snapshots, VM states and bitmaps have does not change. A kill or a power cut at any point leaves an \
      image that reads the same, at worst with leaked clusters, and the same command goes on from there. \
      Zeros that are stored as data stay. The image must have no errors: "qublk check -r all" repairs. Data \
      of an image that is encrypted by LUKS is encrypted anew where it moves, which needs the passphrase. On \
      a block device nothing is cut, and the end of the image comes down.
      """)

  @Flag(name: [.customShort("n"), .long], help: "Only say what would be gained.") var dryRun = false
  @OptionGroup var format: FormatOption
  @OptionGroup var naming: ImageNaming
  @OptionGroup var progress: ProgressOption
  @OptionGroup var quiet: QuietOption
  @Option(help: "The form of the answer: human or json.") var output = OutputFormat.human
  @Argument(help: ArgumentHelp("The image.", valueName: "file")) var name: String

  func run() throws {
    let image = try NamedImage(
      name, format: format.format, naming, NamedImage.Access(isReadOnly: dryRun))
    guard image.format == .qcow2 else {
      ToolOutput.note(
        name, "a \(image.format.rawValue) image has no clusters to move: only qcow2 has")
      throw ExitCode(1)
    }
    try JobRunner.refuseServed(image)
    let job = CompactJob(isTrial: dryRun, secret: image.options.secrets.first)
    let runner = JobRunner(
      showsProgress: progress.progress && !dryRun, isQuiet: quiet.quiet)
    let outcome = try runner.run(job, on: image)
    if quiet.quiet { return }
    try ToolOutput.write(
      output == .json
        ? outcome.jsonText(path: image.options.path) : outcome.humanText(isTrial: dryRun))
  }
}
