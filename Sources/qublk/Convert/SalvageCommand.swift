import ArgumentParser
import DiskImages
import ImageJobs
import QCOW2Engine
import QCOW2Tools

/// `qublk salvage`: what is readable of a destroyed image; qemu-img has no such command.
struct SalvageCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "salvage",
    abstract: "Copy what is readable of a destroyed qcow2 image, and list what is not.",
    discussion: """
      The image is only read, whatever is wrong with it, and refcounts are not looked at. What cannot be \
      read is zeros in the output, and listed with the reason. Fields of the header that cannot be used are \
      replaced by options, or by what the tables in the file look like; each guess is noted. Exit status: 0 \
      everything was read, 1 failure, 3 something was lost.
      """)

  @OptionGroup var naming: ImageNaming
  @Option(
    name: [.customShort("O"), .customLong("target-format")],
    help: "The format of the output: qcow2 or raw. (default: raw)")
  var targetFormat: String?
  @Option(
    name: [.customShort("o"), .customLong("target-format-options")],
    help: "Options of the output, as those of create; may be given again.")
  var options: [String] = []
  @Option(
    name: [.customShort("l"), .customLong("snapshot")],
    help: "Read this internal snapshot: an ID or name, or snapshot.id=ID,snapshot.name=NAME.")
  var snapshot: String?
  @Option(help: "The size of clusters, in place of what the header says.") var clusterSize:
    ByteSize?
  @Option(help: "The size of the disk, in place of what the header says.") var size: ByteSize?
  @Option(help: "Where the L1 table lies in the file, in place of what the header says.")
  var l1Offset: ByteSize?
  @Flag(
    help: """
      Look through the file for L2 tables that nothing leads to, and put them in the places of those that \
      are lost, in the order of the file: a guess.
      """)
  var scan = false
  @Flag(help: "Leave the backing file out: what it has counts as lost.") var noBacking = false
  @OptionGroup var share: ShareOption
  @OptionGroup var progress: ProgressOption
  @OptionGroup var quiet: QuietOption
  @Option(help: "The form of the list: human or json.") var output = OutputFormat.human
  @Argument(help: ArgumentHelp("The image.", valueName: "file")) var name: String
  @Argument(help: ArgumentHelp("The output; it is made anew.", valueName: "output")) var target:
    String

  private var salvageOptions: SalvageOptions {
    var options = SalvageOptions()
    options.clusterSize = clusterSize?.bytes
    options.size = size?.bytes
    options.l1Offset = l1Offset?.bytes
    options.scans = scan
    return options
  }

  func run() throws {
    let options = salvageOptions
    if let problem = options.problem { throw CopyRun.refuse(name, problem) }
    var access = NamedImage.Access()
    access.sharesByForce = share.forceShare
    // Its first bytes may say nothing any more.
    let image = try NamedImage(
      name, format: naming.imageOpts ? nil : "qcow2", naming, access)
    guard image.format == .qcow2 else {
      throw CopyRun.refuse(name, "only qcow2 images can be salvaged: copy a raw one with dd_rescue")
    }
    if !share.forceShare { try JobRunner.refuseServed(image) }
    var request = SalvageRequest(image.options, options)
    request.snapshot = snapshot.map(ConvertCommand.selector)
    request.ignoresBacking = noBacking
    let targetRequest = TargetRequest(
      name: target, format: targetFormat, options: self.options, cache: "writeback")
    let made = try targetRequest.target(naming)
    let report = try salvage(request, to: made)
    if !quiet.quiet {
      try ToolOutput.write(
        output == .json ? report.jsonText(path: image.options.path) : report.humanText)
    }
    if !report.losses.isEmpty { throw ExitCode(3) }
  }

  private func salvage(
    _ request: SalvageRequest, to made: ConvertTarget
  ) throws -> SalvageReport {
    var runner = JobRunner()
    runner.showsProgress = progress.progress
    runner.isQuiet = quiet.quiet
    return try runner.watched(made.options.name) { (context: JobContext<NoValue>) in
      do throws(ConvertFailure) {
        return try SalvageHost.run(request, to: made, context)
      } catch { throw ToolOutput.fail(error.image, error.error) }
    } take: { _ in
    }
  }
}
