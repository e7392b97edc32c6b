/// A command of the language: what it is called, takes and does.
package struct IOCommandSpec: Sendable {
  let name: String
  /// A short name.
  var alias: String?
  /// The options and operands, for people.
  var syntax = ""
  let summary: String
  /// One line for each option; more where there is more to say.
  var details: [String] = []
  /// The number of words after the name, options included.
  var words: ClosedRange<Int> = 0...0
  var needsFile = true
  var needsWriting = false
  let parse: @Sendable ([String], IOCommandSpec) throws(IOFailure) -> IOAction

  var usageLine: String { "\(name) \(syntax)\(syntax.isEmpty ? "" : " ")-- \(summary)" }

  /// Checks the number of words; `name` is how the command was called.
  func checkCount(_ count: Int, calledAs name: String) throws(IOFailure) {
    guard words.contains(count) else {
      throw .argumentCount(count, name: name, allowed: words)
    }
  }

  /// Splits a line into the command, the name that it was called by, and the words after that.
  ///
  /// Nil for an empty line. Only spaces separate words, and nothing quotes them.
  static func find(
    in line: String
  ) throws(IOFailure) -> (command: IOCommandSpec, name: String, words: [String])? {
    let words = line.split(separator: " ").map(String.init)
    guard let name = words.first else { return nil }
    guard let command = named(name) else { throw .unknownCommand(name) }
    return (command, name, Array(words.dropFirst()))
  }

  static func named(_ name: String) -> IOCommandSpec? {
    all.first { $0.name == name || $0.alias == name }
  }
}
