import ArgumentParser
import ImageJobs
import QCOW2Format
import QCOW2Tools

/// `qublk info`: what an image is, in qemu-img's words.
struct InfoCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "info", abstract: "Show what a qcow2 image is.",
    discussion: "Neither the backing file nor a data file is opened.")

  @Option(name: .short, help: "The format: qcow2 is the only one.") var format = "qcow2"
  @Option(help: "The form of the answer: human or json.") var output = OutputFormat.human
  @Flag(name: .customShort("U"), help: "Look at an image that is in use.") var forceShare = false
  @Argument(help: "The image.") var file: String

  func run() throws {
    let file = FileReference.commandLinePath(self.file)
    let report: ImageInfoReport
    do throws(JobError) {
      try ToolOutput.expectQCOW2(format)
      let context = JobContext<NoValue>(tell: ToolOutput.teller(file))
      report = try OfflineHost.run(InfoJob(), on: file, sharesByForce: forceShare, context)
    } catch {
      throw ToolOutput.fail(file, error)
    }
    try ToolOutput.write(output == .json ? report.jsonText : report.humanText)
  }
}
