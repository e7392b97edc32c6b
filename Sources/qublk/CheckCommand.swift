import ArgumentParser
import ImageJobs
import QCOW2Format
import QCOW2Tools

/// `qublk check`: whether an image's metadata is consistent, with qemu-img's exit codes.
struct CheckCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "check", abstract: "Check a qcow2 image. Without -r, never changes it.",
    discussion: """
      Exit status: 0 no errors, 1 the check could not be completed, 2 corruptions, 3 leaked \
      clusters only, 63 not a format that can be checked. With -r it is the status after the \
      repair, which never changes what the guest sees. What cannot be repaired is named with the \
      reason.
      """)

  @Flag(name: .short, help: "Print nothing but errors.") var quiet = false
  @Option(name: .short, help: "The format: qcow2 is the only one.") var format: String?
  @Option(help: "The form of the answer: human or json.") var output = OutputFormat.human
  @Flag(name: .customShort("U"), help: "Check an image that is in use.") var forceShare = false
  @Option(
    name: [.short, .long],
    help: "Repair: leaks (refcounts that are too high) or all (refcounts, tables, entries).")
  var repair: CheckJob.Repair?
  @Argument(help: ArgumentHelp("The image.", valueName: "file")) var name: String

  private var file: String { FileReference.commandLinePath(name) }

  func validate() throws {
    if repair != nil && forceShare {
      throw ValidationError("-U cannot be used with -r: nobody else may use an image in repair")
    }
  }

  func run() throws {
    if let format, format != "qcow2" {
      ToolOutput.note(file, "format \"\(format)\" cannot be checked, only qcow2 can")
      throw ExitCode(63)
    }
    let result = try checked()
    switch output {
    case .json: try ToolOutput.write(result.jsonText(path: file))
    case .human: if !quiet { try ToolOutput.write(result.humanText) }
    }
    if result.exitCode != 0 { throw ExitCode(result.exitCode) }
  }

  private func checked() throws(ExitCode) -> CheckResult {
    let context = JobContext<NoValue>(
      tell: ToolOutput.teller(file, output: output == .human && !quiet))
    do throws(JobError) {
      return try OfflineHost.run(
        CheckJob(repair: repair), on: file, sharesByForce: forceShare, context)
    } catch {
      let status = ToolOutput.fail(file, error)
      // A file that nobody said is a qcow2 image, and that is none.
      if format == nil, case .file(.format(.notQCOW2)) = error { throw ExitCode(63) }
      throw status
    }
  }
}

extension CheckJob.Repair: ExpressibleByArgument {}
