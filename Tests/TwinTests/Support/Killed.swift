import Glibc
import TestTools
import Testing

/// Commands that are killed while they run.
enum Killed {
  /// Starts qublk in a directory and kills it (SIGKILL) after some microseconds; nil lets it end.
  ///
  /// A command that fails before it is killed is a failure of the test.
  ///
  /// - Returns: Whether it was killed.
  static func run(
    _ words: [String], in directory: String, after microseconds: Int?, _ text: String
  ) throws -> Bool {
    let line = "cd \"$1\" && shift && exec \"$@\""
    let program = try Subprocess(
      "sh", ["-c", line, "sh", directory, Tools.qublkPath ?? ""] + words)
    if let microseconds {
      usleep(UInt32(microseconds))
      kill(program.process, SIGKILL)
    }
    let outcome = program.finish(within: 60)
    #expect(outcome.status == 0 || outcome.status == 128 + SIGKILL, "\(text): \(outcome.errors)")
    return outcome.status == 128 + SIGKILL
  }
}
