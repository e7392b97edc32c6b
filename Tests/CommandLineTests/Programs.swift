import Glibc
import TestTools
import Testing

/// How long a program may take, in seconds.
private let limit = 30.0

func run(_ program: String, _ arguments: String...) throws -> Outcome {
  try Subprocess(program, arguments).finish(within: limit)
}

/// Runs the qublk that was built beside these tests.
func qublk(_ arguments: String...) throws -> Outcome {
  try Subprocess(qublkPath(), arguments).finish(within: limit)
}

func qublkPath() throws -> String { try builtProgram("qublk") }

/// The path of a program that was built beside these tests.
func builtProgram(_ name: String) throws -> String {
  let path = try #require(realpath("/proc/self/exe", nil))
  defer { free(path) }
  // Swift Testing may run in the bundle's own process or in a helper of the toolchain.
  let candidates = [String(cString: path)] + CommandLine.arguments
  for candidate in candidates {
    let directory = candidate[..<(candidate.lastIndex(of: "/") ?? candidate.startIndex)]
    if access("\(directory)/\(name)", X_OK) == 0, candidate.hasSuffix(".xctest") {
      return "\(directory)/\(name)"
    }
  }
  Issue.record("there is no \(name) beside \(candidates)")
  return name
}
