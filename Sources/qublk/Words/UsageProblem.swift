/// Words for what is wrong with a command line, with the way out.
extension GetoptWords.Problem {
  /// The error line after "qublk: ".
  func text(_ tree: CommandTree) -> String {
    switch self {
    case .noSuchCommand(let name):
      let names = tree.commands.flatMap(\.names)
      return "unknown subcommand \"\(name)\"" + Self.hint(name, names, "qublk --help")
    case .noSuchOption(let name, let command):
      let options = tree.command(command)?.options ?? []
      return "\(command): unknown option \"\(name)\""
        + Self.hint(name, options.flatMap(\.names), "qublk \(command) --help")
    case .missingValue(let name): return "option \"\(name)\" needs a value"
    case .unwantedValue(let name, let value):
      return "option \"\(name)\" takes no value, found \"\(value)\""
    }
  }

  /// What people may have meant by a name that is the beginning of nothing.
  private static let synonyms = [
    "--ro": "--read-only", "--readonly": "--read-only", "--cow": "--copy-on-read",
    "--fmt": "--format", "--backing-file": "--backing", "--size": "--size",
  ]

  /// "did you mean …?", or where all names are listed.
  private static func hint(_ name: String, _ known: [String], _ help: String) -> String {
    if let meant = synonyms[name], known.contains(meant) { return ": did you mean \"\(meant)\"?" }
    // Any letter is as near as any other.
    let candidates = name.count > 2 ? known.filter { $0.count > 2 } : []
    let nearest = candidates.map { ($0, distance($0, name)) }.min { $0.1 < $1.1 }
    if let (word, distance) = nearest, distance <= max(1, name.count / 3) {
      return ": did you mean \"\(word)\"?"
    }
    return ": \"\(help)\" lists them all"
  }

  /// How many letters must be put in, taken out, changed, or swapped with the next one.
  private static func distance(_ one: String, _ other: String) -> Int {
    let (a, b) = (Array(one), Array(other))
    var before: [Int] = []
    var last = Array(0...b.count)
    for i in a.indices {
      var row = [i + 1]
      for j in b.indices {
        var best = min(last[j] + (a[i] == b[j] ? 0 : 1), last[j + 1] + 1, row[j] + 1)
        if i > 0, j > 0, a[i] == b[j - 1], a[i - 1] == b[j] { best = min(best, before[j - 1] + 1) }
        row.append(best)
      }
      (before, last) = (last, row)
    }
    return last[b.count]
  }
}

/// The exit status of a command that is used wrongly.
enum UsageStatus {
  /// As of qemu-img and qemu-io for the commands that have their names, else EX_USAGE of sysexits(3).
  static func of(_ words: [String]) -> Int32 {
    switch words.first {
    case "amend", "bench", "bitmap", "check", "commit", "compare", "convert", "create", "dd",
      "info", "io",
      "map", "measure", "rebase", "resize", "snapshot":
      1
    default: 64
    }
  }
}
