import TestTools

/// A line of bash that could not do what a test needs of it.
struct ShellFailure: Error, CustomStringConvertible {
  let line: String
  let result: Outcome
  var description: String { "\(line): status \(result.status)\n\(result.output)" }
}

/// Whether QEMU's tools are here to compare with.
let hasQEMU = (try? shell("qemu-img --version && qemu-io --version").status) == 0

/// Runs a line of bash that must succeed.
@discardableResult
func mustShell(_ line: String) throws -> String {
  let result = try shell(line)
  guard result.status == 0 else { throw ShellFailure(line: line, result: result) }
  return result.output
}
