import ArgumentParser
import BlockCore
import DiskImages
import Glibc
import ImageJobs
import QCOW2Tools

/// `qublk check`: whether an image's metadata is consistent, with qemu-img's exit codes.
struct CheckCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "check", abstract: "Check a qcow2 image. Without -r, never changes it.",
    discussion: """
      Exit status: 0 no errors, 1 the check could not be completed, 2 corruptions, 3 leaked \
      clusters only, 63 not a format that can be checked. With -r it is the status after the \
      repair, which never changes what the guest sees. What cannot be repaired is named with the \
      reason. An attached image is checked by its daemon, beside the guest; it cannot be repaired.
      """)

  @OptionGroup var format: FormatOption
  @OptionGroup var naming: ImageNaming
  @OptionGroup var share: ShareOption
  @OptionGroup var quiet: QuietOption
  @Option(
    name: [.customShort("T"), .customLong("cache")],
    help: "The cache mode: none, writeback, writethrough, directsync or unsafe.")
  var cache: String?
  @Option(help: "The form of the answer: human or json.") var output = OutputFormat.human
  @Option(
    name: [.short, .long],
    help: "Repair: leaks (refcounts that are too high) or all (refcounts, tables, entries).")
  var repair: CheckJob.Repair?
  @Argument(help: ArgumentHelp("The image.", valueName: "file")) var name: String

  func validate() throws {
    if repair != nil && share.forceShare {
      throw ValidationError("-U cannot be used with -r: nobody else may use an image in repair")
    }
  }

  func run() throws {
    let access = NamedImage.Access(
      isReadOnly: repair == nil, sharesByForce: share.forceShare, cache: cache)
    let image = try NamedImage(name, format: format.format, naming, access)
    guard image.format == .qcow2 else {
      if unsafe Glibc.access(image.options.path, R_OK) != 0 {
        ToolOutput.note(name, "cannot open: \(Errno(errno))")
        throw ExitCode(1)
      }
      ToolOutput.note(name, "a raw image has nothing that could be checked, only qcow2 has")
      throw ExitCode(63)
    }
    if repair != nil { try JobRunner.refuseServed(image) }
    let runner = JobRunner(isQuiet: quiet.quiet, showsOutput: output == .human)
    let result = try runner.run(CheckJob(repair: repair), on: image)
    if !quiet.quiet {
      let path = image.options.path
      try ToolOutput.write(output == .json ? result.jsonText(path: path) : result.humanText)
    }
    if result.exitCode != 0 { throw ExitCode(result.exitCode) }
  }
}

extension CheckJob.Repair: ExpressibleByArgument {}
