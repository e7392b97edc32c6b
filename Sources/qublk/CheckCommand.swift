import ArgumentParser
import DiskImages
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
  var repair: Repair?
  @Argument(help: ArgumentHelp("The image.", valueName: "file")) var name: String

  private var file: String { FileReference.commandLinePath(name) }

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
    if let format, format != "qcow2" {
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
      throw fail(error)
    }
  }

  /// Ends the command: 63 for a file that nobody said is a qcow2 image, and that is none.
  private func fail(_ error: ToolError) -> ExitCode {
    let status = ToolOutput.fail(file, error)
    guard format == nil, case .format(.notQCOW2) = error else { return status }
    return ExitCode(63)
  }

  /// Checks, repairs, and checks again what was repaired.
  private func repaired(_ mode: RepairMode) throws -> CheckResult {
    var result: CheckResult
    let changes: RefcountChanges
    let bytes: FileBytes
    do throws(ToolError) {
      bytes = try FileBytes(path: file, access: .readWrite, lock: ToolLock.writer)
      try checkBefore(bytes)
      changes = try RefcountRebuild.repair(bytes, mode)
    } catch {
      throw fail(error)
    }
    if !changes.isEmpty && !quiet && output == .human { try ToolOutput.write(changes.humanText) }
    if let obstacle = changes.obstacle { ToolOutput.note(file, obstacle.message) }
    do throws(ToolError) {
      result = try check(bytes, afterRepair: mode)
      result.note(changes)
    } catch {
      throw fail(error)
    }
    if result.exitCode != 0 { noteWayOut(result, mode) }
    return result
  }

  /// Says what is wrong before the repair; a snapshot table that only a repair can read is no end.
  private func checkBefore(_ bytes: FileBytes) throws(ToolError) {
    do throws(ToolError) { _ = try check(bytes) } catch {
      guard case .format(let problem) = error, repair == .all else { throw error }
      ToolOutput.note(file, problem.message)
    }
  }

  private func check(
    _ bytes: FileBytes, afterRepair mode: RepairMode? = nil
  ) throws(ToolError) -> CheckResult {
    var findings = FindingPrinter(path: file, repaired: mode)
    let result = try ImageCheck.run(bytes) { findings.print($0) }
    findings.printRest()
    return result
  }

  /// Says how to go on where a repair could not mend everything.
  private func noteWayOut(_ result: CheckResult, _ mode: RepairMode) {
    if mode == .leaks {
      ToolOutput.note(file, "only leaks were repaired: \"qublk check -r all\" repairs more")
    } else if result.corruptions > 0 || result.checkErrors > 0 {
      ToolOutput.note(
        file,
        "the rest cannot be repaired: attach the image with \"qublk add --read-only\" and copy off "
          + "what can be read; requests that meet the damage fail")
    }
  }
}

/// Prints findings as they come, and of very many only how many there were.
private struct FindingPrinter {
  private static let most = 100

  private let path: String
  /// After which repair the findings are left; nil before one.
  private let repaired: RepairMode?
  private var count = 0

  init(path: String, repaired: RepairMode?) {
    self.path = path
    self.repaired = repaired
  }

  mutating func print(_ finding: CheckFinding) {
    count += 1
    guard count <= Self.most else { return }
    let reason = repaired == .all && finding.severity != .remark ? ": \(finding.whyItStays)" : ""
    ToolOutput.note(path, finding.message + reason)
  }

  func printRest() {
    guard count > Self.most else { return }
    ToolOutput.note(path, "\(count - Self.most) more findings are not listed")
  }
}
