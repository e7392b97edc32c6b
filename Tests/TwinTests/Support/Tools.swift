import Glibc
import TestTools
import Testing

/// The two programs that the twins compare, and how they are run.
enum Tools {
  /// How long a program may take, in seconds.
  private static let limit = 60.0

  /// Where the newest QEMU's tools are; nil without them.
  static let qemuDirectory: String? = {
    let cache = setting("QUBLK_VM_CACHE") ?? "/var/cache/qublk-vm"
    let directory = setting("QUBLK_QEMU_DIR") ?? "\(cache)/qemu/bin"
    return access("\(directory)/qemu-img", X_OK) == 0 ? directory : nil
  }()

  static let reason: Comment = "needs the newest QEMU: run scripts/qemu-newest"
  static let hasQEMU = qemuDirectory != nil && qublkPath != nil

  /// The qublk that was built beside these tests.
  static let qublkPath: String? = {
    guard let own = realpath("/proc/self/exe", nil) else { return nil }
    defer { free(own) }
    // Swift Testing may run in the bundle's own process or in a helper of the toolchain.
    for path in [String(cString: own)] + CommandLine.arguments where path.hasSuffix(".xctest") {
      let directory = path[..<(path.lastIndex(of: "/") ?? path.startIndex)]
      if access("\(directory)/qublk", X_OK) == 0 { return "\(directory)/qublk" }
    }
    return nil
  }()

  /// Runs qublk in a directory.
  static func qublk(_ words: [String], in directory: String) throws -> Outcome {
    try run(qublkPath ?? "qublk", words, in: directory)
  }

  /// Runs one of the newest QEMU's tools in a directory.
  ///
  /// On a busy machine QEMU cannot always measure how long a passphrase takes; it then changes nothing, and
  /// is run again.
  static func qemu(_ tool: String, _ words: [String], in directory: String) throws -> Outcome {
    var outcome: Outcome
    var attempts = 0
    repeat {
      outcome = try run("\(qemuDirectory ?? "")/\(tool)", words, in: directory)
      attempts += 1
    } while outcome.errors.contains("accurate CPU usage") && attempts < 40
    return outcome
  }

  /// Runs one of the newest QEMU's tools, which must succeed, and returns its output.
  @discardableResult
  static func mustQEMU(_ tool: String, _ words: [String], in directory: String) throws -> String {
    let result = try qemu(tool, words, in: directory)
    // qemu-io prints the failures of its commands and still ends with 0.
    let isBad = tool == "qemu-io" && result.output.contains("failed")
    guard result.succeeded, !isBad else {
      throw CommandFailure(
        words: [tool] + words,
        result: Outcome(status: result.status, output: result.output + result.errors))
    }
    return result.output
  }

  private static func run(
    _ program: String, _ words: [String], in directory: String
  ) throws -> Outcome {
    let line = "cd \"$1\" && shift && exec \"$@\""
    return try Subprocess("sh", ["-c", line, "sh", directory, program] + words)
      .finish(within: limit)
  }

  private static func setting(_ name: String) -> String? {
    getenv(name).map { String(cString: $0) }
  }
}
