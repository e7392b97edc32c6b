import Glibc
import TestTools
import Testing

/// The other implementation: QEMU's command line tools.
enum Qemu {
  /// Whether the tools are there; tests without them are skipped with ``reason``.
  static let isInstalled: Bool =
    (try? run(["qemu-img", "--version"]).succeeded) == true
    && (try? run(["qemu-io", "--version"]).succeeded) == true

  static let reason: Comment = "needs qemu-img and qemu-io in the PATH"

  /// What `qemu-img check` says is wrong; nil if there are neither errors nor leaks.
  static func complaint(_ image: String) throws -> String? {
    let result = try run(["qemu-img", "check", "-f", "qcow2", image])
    return result.succeeded ? nil : "status \(result.status): \(result.output.suffix(2000))"
  }

  /// How the guest's view of an image differs from a raw file; nil if it does not.
  static func difference(_ image: String, raw: String) throws -> String? {
    let result = try run(["qemu-img", "compare", "-f", "qcow2", "-F", "raw", image, raw])
    return result.succeeded ? nil : "status \(result.status): \(result.output)"
  }

  /// How two raw files differ; nil if they do not.
  static func rawDifference(_ one: String, _ other: String) throws -> String? {
    let result = try run(["qemu-img", "compare", "-f", "raw", "-F", "raw", one, other])
    return result.succeeded ? nil : "status \(result.status): \(result.output)"
  }

  /// Runs `qemu-io` commands in one process.
  static func io(_ image: String, _ commands: [String]) throws {
    try runIO(
      ["qemu-io", "-f", "qcow2", "-d", "unmap"] + commands.flatMap { ["-c", $0] } + [image])
  }

  static func runIO(_ words: [String]) throws {
    let result = try run(words)
    // qemu-io prints failures of single commands and still ends with 0.
    guard result.succeeded, !result.output.contains("failed"), !result.output.contains("error")
    else { throw CommandFailure(words: words, result: result) }
  }

  /// Runs a tool of QEMU that must succeed, and returns its output.
  @discardableResult
  static func must(_ words: [String]) throws -> String {
    let result = try run(words)
    guard result.succeeded else { throw CommandFailure(words: words, result: result) }
    return result.output
  }

  /// Runs a tool of QEMU, again if a child process of another test still bears a lock of a file
  /// that we have closed, or if qemu-img could not measure how fast it derives keys.
  static func run(_ words: [String]) throws -> Outcome {
    for _ in 0..<20 {
      let result = try InteropTests.run(words)
      guard !result.succeeded || result.output.contains("Failed to get"),
        result.output.contains("Failed to get")
          || result.output.contains("Unable to get accurate CPU usage")
      else { return result }
      usleep(20_000)
    }
    return try InteropTests.run(words)
  }
}
