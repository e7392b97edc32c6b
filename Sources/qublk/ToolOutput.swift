import ArgumentParser
import BlockCore
import Glibc
import HostFiles
import QCOW2Tools

/// The forms in which `info` and `check` answer.
enum OutputFormat: String, ExpressibleByArgument {
  case human, json
}

/// What the image commands print and how they end.
enum ToolOutput {
  /// Writes `text` to standard output as it is.
  static func write(_ text: String) throws(ExitCode) {
    guard writeAll(STDOUT_FILENO, text) else {
      note("standard output", "write: \(errorText(Errno(errno)))")
      throw ExitCode(1)
    }
  }

  /// Refuses the formats that are not qcow2.
  static func expectQCOW2(_ format: String) throws(ToolError) {
    guard format == "qcow2" else {
      throw .option(.badValue(name: "-f", found: format, allowed: "qcow2"))
    }
  }

  /// Writes one error line and ends the command with exit status 1.
  static func fail(_ path: String, _ error: ToolError) -> ExitCode {
    let use = error == .deviceInUse ? BlockDeviceUse.find(path) : nil
    note(path, use?.refusal ?? error.message)
    return ExitCode(1)
  }

  /// Writes one line about an image to standard error.
  static func note(_ path: String, _ text: String) {
    _ = writeAll(STDERR_FILENO, "qublk: \(path): \(text)\n")  // nowhere left to complain
  }
}
