/// The words of a command as getopt_long(3) reads them, in the form that the parser takes.
///
/// Scripts written for qemu-img join letters and values ("-qfqcow2"), shorten long names
/// ("--forc"), and give values and operands that begin with a dash ("-1G").
struct GetoptWords {
  /// Options first, each with its value behind "=" where it has a long name; then "--" and the operands.
  private(set) var words: [String]

  /// What is wrong with a word.
  enum Problem: Error, Equatable {
    case noSuchCommand(String)
    /// No option of the command is called so, or more than one begins so.
    case noSuchOption(String, command: String)
    case missingValue(String)
    case unwantedValue(String, value: String)
  }

  /// Reads words; those before the subcommand must be none.
  init(_ all: [String], _ tree: CommandTree) throws(Problem) {
    guard let name = all.first, !name.hasPrefix("-") else {
      words = all
      return
    }
    guard let command = tree.command(name) else { throw .noSuchCommand(name) }
    var reader = Reader(command: command, name: name, rest: all.dropFirst())
    try reader.run()
    words = [name] + reader.options + (reader.operands.isEmpty ? [] : ["--"] + reader.operands)
  }
}

/// Reads the words of one command.
private struct Reader {
  let command: CommandTree.Command
  let name: String
  var rest: ArraySlice<String>
  var options: [String] = []
  var operands: [String] = []

  mutating func run() throws(GetoptWords.Problem) {
    while let word = rest.popFirst() {
      if word == "--" {
        operands += rest
        return
      }
      if word.hasPrefix("--") {
        try long(word)
      } else if word.hasPrefix("-"), word != "-", !isNumber(word) {
        try short(word)
      } else {
        operands.append(word)
      }
    }
  }

  /// "-1G" is an operand, unless there is such an option.
  private func isNumber(_ word: String) -> Bool {
    guard let digit = word.dropFirst().first, digit.isASCII, digit.isNumber else { return false }
    return command.option("-\(digit)") == nil
  }

  private mutating func long(_ word: String) throws(GetoptWords.Problem) {
    let parts = word.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
    let given = String(parts[0])
    guard let option = command.long(given) else {
      throw .noSuchOption(given, command: name)
    }
    // Of several names, the one that was meant: "--no-x" is not "--x".
    let name = option.names.first { $0.hasPrefix(given) } ?? option.name
    let value = parts.count > 1 ? String(parts[1]) : nil
    if option.takesValue {
      guard let value = value ?? rest.popFirst() else { throw .missingValue(name) }
      options.append("\(name)=\(value)")
    } else {
      if let value { throw .unwantedValue(name, value: value) }
      options.append(name)
    }
  }

  /// Letters in one word: flags, and at most one option, whose value is the rest or the next word.
  private mutating func short(_ word: String) throws(GetoptWords.Problem) {
    var letters = word.dropFirst()
    while let letter = letters.popFirst() {
      let name = "-\(letter)"
      guard let option = command.option(name) else {
        throw .noSuchOption(options.isEmpty && letters.isEmpty ? word : name, command: self.name)
      }
      guard option.takesValue else {
        options.append(name)
        continue
      }
      var value: String?
      if !letters.isEmpty {
        value = String(letters.first == "=" ? letters.dropFirst() : letters)
      } else {
        value = rest.popFirst()
      }
      guard let value else { throw .missingValue(name) }
      options += option.name.hasPrefix("--") ? ["\(option.name)=\(value)"] : [name, value]
      return
    }
  }
}
