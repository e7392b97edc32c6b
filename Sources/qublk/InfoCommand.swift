import ArgumentParser
import DiskImages
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
    let info: ImageInfo
    let file = FileReference.commandLinePath(self.file)
    do throws(ToolError) {
      try ToolOutput.expectQCOW2(format)
      let lock = forceShare ? ToolLock.none : ToolLock.reader
      let bytes = try FileBytes(path: file, access: .readOnly, lock: lock)
      info = try ImageInfo(reading: bytes, path: file, allocatedBytes: bytes.allocatedBytes)
    } catch {
      throw ToolOutput.fail(file, error)
    }
    for warning in info.warnings { ToolOutput.note(file, warning) }
    try ToolOutput.write(output == .json ? info.json : info.humanText)
  }
}
