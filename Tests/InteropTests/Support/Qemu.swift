import Glibc
import TestTools
import Testing

/// The other implementation: QEMU's command line tools; tests without them are skipped with ``reason``.
enum Qemu {
  static let reason: Comment = "needs qemu-img and qemu-io in the PATH"

  /// What `qemu-img check` says is wrong; nil if there are neither errors nor leaks.
  static func complaint(_ image: String) throws -> String? {
    let result = try runQEMU(["qemu-img", "check", "-f", "qcow2", image])
    return result.succeeded ? nil : "status \(result.status): \(result.output.suffix(2000))"
  }

  /// How the guest's view of an image differs from a raw file; nil if it does not.
  static func difference(_ image: String, raw: String) throws -> String? {
    let result = try runQEMU(["qemu-img", "compare", "-f", "qcow2", "-F", "raw", image, raw])
    return result.succeeded ? nil : "status \(result.status): \(result.output)"
  }

  /// How two raw files differ; nil if they do not.
  static func rawDifference(_ one: String, _ other: String) throws -> String? {
    let result = try runQEMU(["qemu-img", "compare", "-f", "raw", "-F", "raw", one, other])
    return result.succeeded ? nil : "status \(result.status): \(result.output)"
  }

  /// Runs `qemu-io` commands in one process.
  static func io(_ image: String, _ commands: [String]) throws {
    try mustRunQEMUIO(
      ["-f", "qcow2", "-d", "unmap"] + commands.flatMap { ["-c", $0] } + [image])
  }
}
