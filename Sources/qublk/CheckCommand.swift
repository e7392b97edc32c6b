import ArgumentParser
import QCOW2Tools

/// `qublk check`: whether an image's metadata is consistent, with qemu-img's exit codes.
struct CheckCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "check", abstract: "Check a qcow2 image. Never changes it.",
    discussion: """
      Exit status: 0 no errors, 1 the check could not be completed, 2 corruptions, 3 leaked \
      clusters only, 63 not a format that can be checked.
      """)

  @Flag(name: .short, help: "Print nothing but errors.") var quiet = false
  @Option(name: .short, help: "The format: qcow2 is the only one.") var format = "qcow2"
  @Option(help: "The form of the answer: human or json.") var output = OutputFormat.human
  @Flag(name: .customShort("U"), help: "Check an image that is in use.") var forceShare = false
  @Option(name: [.short, .long], help: .hidden) var repair: String?
  @Argument(help: "The image.") var file: String

  func run() throws {
    if repair != nil { throw ToolOutput.fail(file, .option(.notSupportedYet("-r"))) }
    guard format == "qcow2" else {
      ToolOutput.note(file, "format \"\(format)\" cannot be checked, only qcow2 can")
      throw ExitCode(63)
    }
    var findings = FindingPrinter(path: file)
    let result: CheckResult
    do throws(ToolError) {
      let lock = forceShare ? ToolLock.none : ToolLock.reader
      let bytes = try FileBytes(path: file, access: .readOnly, lock: lock)
      result = try ImageCheck.run(bytes) { findings.print($0) }
    } catch {
      throw ToolOutput.fail(file, error)
    }
    findings.printRest()
    switch output {
    case .json: try ToolOutput.write(result.json(path: file))
    case .human: if !quiet { try ToolOutput.write(result.humanText) }
    }
    if result.exitCode != 0 { throw ExitCode(result.exitCode) }
  }
}

/// Prints findings as they come, and of very many only how many there were.
private struct FindingPrinter {
  private static let most = 100

  let path: String
  private var count = 0

  init(path: String) { self.path = path }

  mutating func print(_ finding: CheckFinding) {
    count += 1
    if count <= Self.most { ToolOutput.note(path, finding.message) }
  }

  func printRest() {
    guard count > Self.most else { return }
    ToolOutput.note(path, "\(count - Self.most) more findings are not listed")
  }
}
