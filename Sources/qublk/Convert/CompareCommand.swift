import ArgumentParser
import DiskImages
import ImageJobs

/// `qublk compare`: whether two images read the same, with qemu-img's texts and exit codes.
struct CompareCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "compare", abstract: "Compare what two images read as, whatever their formats.",
    discussion: """
      Exit status: 0 the images are identical, 1 they differ, 2 an image cannot be opened, 3 an image does \
      not say what it has, 4 an image cannot be read.
      """)

  @Option(
    name: [.customShort("f"), .customLong("a-format")],
    help: "The format of the first image. (default: what its first bytes say)")
  var firstFormat: String?
  @Option(
    name: [.customShort("F"), .customLong("b-format")],
    help: "The format of the second image. (default: what its first bytes say)")
  var secondFormat: String?
  @OptionGroup var naming: ImageNaming
  @Flag(
    name: [.customShort("s"), .customLong("strict")],
    help: "The sizes must be the same, and which ranges are data, zeros or unallocated.")
  var strict = false
  @Option(
    name: [.customShort("T"), .customLong("cache")],
    help: "The cache mode: none, writeback, writethrough, directsync or unsafe.")
  var cache: String?
  @OptionGroup var share: ShareOption
  @OptionGroup var progress: ProgressOption
  @OptionGroup var quiet: QuietOption
  @Argument(help: ArgumentHelp("The two images.", valueName: "file"))
  var files: [String] = []

  func run() throws {
    guard files.count == 2 else {
      throw CopyRun.refuse("compare", "Expecting two image file names")
    }
    let first: NamedImage
    let second: NamedImage
    do {
      first = try image(files[0], firstFormat)
      second = try image(files[1], secondFormat)
    } catch is ExitCode { throw ExitCode(2) }
    var runner = JobRunner()
    runner.showsProgress = progress.progress
    runner.isQuiet = quiet.quiet
    let result = try runner.watched(files[0]) { (context: JobContext<NoValue>) in
      do throws(CompareFailure) {
        return try CompareHost.run(
          CompareJob(isStrict: strict), (first.format, first.options),
          (second.format, second.options), context)
      } catch {
        _ = ToolOutput.fail(error.image, error.error)
        throw ExitCode(error.status)
      }
    } take: { _ in
    }
    if !quiet.quiet { try ToolOutput.write(result.text) }
    if result.difference != nil { throw ExitCode(1) }
  }

  private func image(_ name: String, _ format: String?) throws -> NamedImage {
    var access = NamedImage.Access()
    access.sharesByForce = share.forceShare
    access.cache = cache
    return try NamedImage(name, format: format, naming, access)
  }
}

extension CompareJob.Result {
  /// What qemu-img prints.
  var text: String {
    let warning = sizesDiffer && offset >= common ? "Warning: Image size mismatch!\n" : ""
    return switch difference {
    case .size: "Strict mode: Image size mismatch!\n"
    case .status: "Strict mode: Offset \(offset) block status mismatch!\n"
    case .content: warning + "Content mismatch at offset \(offset)!\n"
    case nil: (sizesDiffer ? "Warning: Image size mismatch!\n" : "") + "Images are identical.\n"
    }
  }
}
