import ArgumentParser
import BlockCore
import DiskImages
import Glibc
import HostFiles
import ImageJobs
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
      note("standard output", "write: \(Errno(errno))")
      throw ExitCode(1)
    }
  }

  /// Refuses the formats that are not qcow2.
  static func expectQCOW2(_ format: String) throws(JobError) {
    guard format == "qcow2" else {
      throw .file(.option(.badValue(name: "-f", found: format, allowed: "qcow2")))
    }
  }

  /// What prints the messages of a job on an image; without `output`, notes alone.
  static func teller(_ path: String, output: Bool = true) -> @Sendable (JobMessage) -> Void {
    { message in
      switch message {
      case .note(let text): note(path, text)
      case .output(let text): if output { _ = writeAll(STDOUT_FILENO, text) }
      }
    }
  }

  /// Writes one error line for a job that failed and ends the command with exit status 1.
  static func fail(_ path: String, _ error: JobError) -> ExitCode {
    if case .file(let error) = error { return fail(path, error) }
    if case .open(let error) = error, error.image == path {
      _ = writeAll(STDERR_FILENO, "qublk: \(error.message)\n")  // the name is in it
    } else {
      note(error.disk ?? path, error.message)
    }
    return ExitCode(1)
  }

  /// Writes one error line and ends the command with exit status 1.
  static func fail(_ path: String, _ error: ToolError) -> ExitCode {
    let use = error == .deviceInUse ? BlockDeviceUse.find(path) : nil
    note(path, use?.refusal ?? error.message)
    return ExitCode(1)
  }

  /// Writes a warning to standard error.
  static func warn(_ text: String) { _ = writeAll(STDERR_FILENO, "qublk: warning: \(text)\n") }

  /// Writes one line to standard error that is about no image.
  static func complain(_ text: String) {
    _ = writeAll(STDERR_FILENO, "qublk: \(text)\n")  // nowhere left to complain
  }

  /// Writes one line about an image to standard error.
  static func note(_ path: String, _ text: String) {
    _ = writeAll(STDERR_FILENO, "qublk: \(path): \(text)\n")  // nowhere left to complain
  }
}
