import Glibc

/// A program that could not do what a test needs of it.
package struct CommandFailure: Error, CustomStringConvertible {
  package let words: [String]
  package let result: Outcome

  package init(words: [String], result: Outcome) { (self.words, self.result) = (words, result) }

  package var description: String {
    "\(words.joined(separator: " ")): status \(result.status)\n\(result.output)"
  }
}

/// Runs a program of the PATH to its end; its errors come with its output.
package func run(_ words: [String]) throws -> Outcome {
  try Subprocess(words[0], Array(words.dropFirst()), joinsErrors: true).finish()
}

/// Runs a program that must succeed, and returns its output.
@discardableResult
package func mustRun(_ words: String...) throws -> String { try mustRun(words) }

@discardableResult
package func mustRun(_ words: [String]) throws -> String {
  let result = try run(words)
  guard result.succeeded else { throw CommandFailure(words: words, result: result) }
  return result.output
}

/// Runs a line of bash to its end, its errors joined with its output.
package func shell(_ line: String) throws -> Outcome { try run(["bash", "-c", line]) }

/// Runs a line of bash that must succeed, and returns its output.
@discardableResult
package func mustShell(_ line: String) throws -> String { try mustRun("bash", "-c", line) }

/// Whether QEMU's tools are here to compare with.
package let hasQEMU =
  (try? shell("qemu-img --version && qemu-io --version").succeeded) == true

/// Runs a tool of QEMU, again if a child process of another test still bears a lock of a file that we
/// have closed, or if qemu-img could not measure how fast it derives keys.
///
/// QEMU measures that with a clock that it finds too coarse now and then.
package func runQEMU(_ words: [String]) throws -> Outcome {
  for _ in 0..<200 {
    let result = try run(words)
    let isForNow =
      result.output.contains("Failed to get")
      || !result.succeeded && result.output.contains("Unable to get accurate CPU usage")
    if !isForNow { return result }
    usleep(20_000)
  }
  return try run(words)
}

/// Runs a tool of QEMU that must succeed, and returns its output.
@discardableResult
package func mustRunQEMU(_ words: [String]) throws -> String {
  let result = try runQEMU(words)
  guard result.succeeded else { throw CommandFailure(words: words, result: result) }
  return result.output
}

/// Runs `qemu-io`, whose commands must all succeed: it prints their failures and still ends with 0.
package func mustRunQEMUIO(_ arguments: [String]) throws {
  let words = ["qemu-io"] + arguments
  let output = try mustRunQEMU(words)
  guard !output.contains("failed"), !output.contains("error") else {
    throw CommandFailure(words: words, result: Outcome(status: 0, output: output))
  }
}
