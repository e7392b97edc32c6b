import TestTools

/// A program that could not do what a test needs of it.
struct CommandFailure: Error, CustomStringConvertible {
  let words: [String]
  let result: Outcome

  var description: String {
    "\(words.joined(separator: " ")): status \(result.status)\n\(result.output)"
  }
}

/// Runs a program of the PATH to its end; its errors come with its output.
func run(_ words: [String]) throws -> Outcome {
  try Subprocess(words[0], Array(words.dropFirst()), joinsErrors: true).finish()
}

/// Runs a program that must succeed, and returns its output.
@discardableResult
func mustRun(_ words: String...) throws -> String {
  let result = try run(words)
  guard result.succeeded else { throw CommandFailure(words: words, result: result) }
  return result.output
}
