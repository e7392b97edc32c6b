import ArgumentParser
import QCOW2Tools

/// `qublk check`: whether an image's metadata is consistent, with qemu-img's exit codes.
struct CheckCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "check", abstract: "Check a qcow2 image. Without -r, never changes it.",
    discussion: """
      Exit status: 0 no errors, 1 the check could not be completed, 2 corruptions, 3 leaked \
      clusters only, 63 not a format that can be checked. With -r it is the status after the \
      repair, which never changes what the guest sees.
      """)

  @Flag(name: .short, help: "Print nothing but errors.") var quiet = false
  @Option(name: .short, help: "The format: qcow2 is the only one.") var format = "qcow2"
  @Option(help: "The form of the answer: human or json.") var output = OutputFormat.human
  @Flag(name: .customShort("U"), help: "Check an image that is in use.") var forceShare = false
  @Option(
    name: [.short, .long],
    help: "Repair: leaks (refcounts that are too high) or all (refcounts and COPIED flags).")
  var repair: Repair?
  @Argument(help: "The image.") var file: String

  /// What a repair may change.
  enum Repair: String, ExpressibleByArgument, CaseIterable {
    case leaks, all

    var mode: RepairMode { self == .leaks ? .leaks : .all }
  }

  func validate() throws {
    if repair != nil && forceShare {
      throw ValidationError("-U cannot be used with -r: nobody else may use an image in repair")
    }
  }

  func run() throws {
    guard format == "qcow2" else {
      ToolOutput.note(file, "format \"\(format)\" cannot be checked, only qcow2 can")
      throw ExitCode(63)
    }
    let result = try repair.map { try repaired($0.mode) } ?? checked()
    switch output {
    case .json: try ToolOutput.write(result.json(path: file))
    case .human: if !quiet { try ToolOutput.write(result.humanText) }
    }
    if result.exitCode != 0 { throw ExitCode(result.exitCode) }
  }

  private func checked() throws -> CheckResult {
    do throws(ToolError) {
      let lock = forceShare ? ToolLock.none : ToolLock.reader
      return try check(FileBytes(path: file, access: .readOnly, lock: lock))
    } catch {
      throw ToolOutput.fail(file, error)
    }
  }

  /// Checks, repairs, and checks again what was repaired.
  private func repaired(_ mode: RepairMode) throws -> CheckResult {
    let result: CheckResult
    let changes: RefcountChanges
    let bytes: FileBytes
    do throws(ToolError) {
      bytes = try FileBytes(path: file, access: .readWrite, lock: ToolLock.writer)
      result = try check(bytes)
      changes = try RefcountRebuild.repair(bytes, mode)
    } catch {
      throw ToolOutput.fail(file, error)
    }
    if changes.isEmpty { return result }
    if !quiet && output == .human { try ToolOutput.write(changes.humanText) }
    do throws(ToolError) {
      var second = try check(bytes)
      second.note(changes)
      return second
    } catch {
      throw ToolOutput.fail(file, error)
    }
  }

  private func check(_ bytes: FileBytes) throws(ToolError) -> CheckResult {
    var findings = FindingPrinter(path: file)
    let result = try ImageCheck.run(bytes) { findings.print($0) }
    findings.printRest()
    return result
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
