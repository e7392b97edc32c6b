/// The words of one command, sorted into options and operands as getopt(3) does: options may stand
/// anywhere before "--", several in one word, a value behind its letter or in the next word.
struct IOWords {
  /// The options in their order, with their values.
  private(set) var options: [(letter: Character, value: String?)] = []
  private(set) var operands: [String] = []

  /// Sorts what follows the command's name; `flags` are the options without a value, `valued` those
  /// with one.
  init(
    _ words: [String], flags: String, valued: String, of command: IOCommandSpec
  ) throws(IOFailure) {
    var rest = words[...]
    while let word = rest.popFirst() {
      if word == "--" {
        operands += rest
        return
      }
      guard word.count > 1, word.hasPrefix("-") else {
        operands.append(word)
        continue
      }
      var letters = word.dropFirst()
      while let letter = letters.popFirst() {
        if flags.contains(letter) {
          options.append((letter, nil))
          continue
        }
        guard valued.contains(letter) else { throw .unknownOption(letter, command) }
        let value = letters.isEmpty ? rest.popFirst() : String(letters)
        guard let value else { throw .missingValue(letter, command) }
        options.append((letter, value))
        break
      }
    }
  }

  /// Whether a flag was given.
  func has(_ letter: Character) -> Bool { options.contains { $0.letter == letter } }

  /// The last value of an option; nil if it was not given.
  func value(_ letter: Character) -> String? {
    options.last { $0.letter == letter }?.value
  }
}
