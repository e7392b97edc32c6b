import ArgumentParser
import Glibc
import QCOW2Tools

/// The forms in which `info` and `check` answer.
enum OutputFormat: String, ExpressibleByArgument {
  case human, json
}

/// What the image commands print and how they end.
enum ToolOutput {
  /// Writes `text` to standard output as it is.
  static func write(_ text: String) {
    fputs(text, stdout)
  }

  /// Writes one error line and ends the command with exit status 1.
  static func fail(_ path: String, _ error: ToolError) -> ExitCode {
    fputs("qublk: \(path): \(error.message)\n", stderr)
    return ExitCode(1)
  }

  /// Writes one line about an image to standard error.
  static func note(_ path: String, _ text: String) {
    fputs("qublk: \(path): \(text)\n", stderr)
  }
}

/// The image locks of the commands.
///
/// The hook for HostFiles' `ImageLock`: until it is wired here, nothing is locked.
enum ToolLock {
  /// Takes the locks of a process that rewrites the image.
  static func writer(_ descriptor: Int32) throws(ToolError) {}
  /// Takes the locks of a process that reads the image; nobody may change it meanwhile.
  static func reader(_ descriptor: Int32) throws(ToolError) {}
  /// Takes no locks (`-U`).
  static func none(_ descriptor: Int32) throws(ToolError) {}
}
