import ArgumentParser
import JSON

/// The commands and their options, as the parser's own definitions have them.
///
/// Read only when words could not be parsed as they are: to read them as getopt(3) would, and to say what
/// is wrong with them.
struct CommandTree {
  /// An option or a flag.
  struct Option {
    /// With their dashes.
    let names: [String]
    let takesValue: Bool
    /// The only words that it takes; empty for any.
    let values: [String]

    /// The name to write it with: a long one, if there is one, takes any value behind "=".
    var name: String { names.first { $0.hasPrefix("--") } ?? names.first ?? "" }
  }

  /// A subcommand.
  struct Command {
    /// The name, then other names.
    let names: [String]
    let options: [Option]
    let positionals: Int

    /// The option with this name, dashes included.
    func option(_ name: String) -> Option? { options.first { $0.names.contains(name) } }

    /// The option that a long name means: its own, or the only one that it is the beginning of.
    func long(_ name: String) -> Option? {
      if let exact = option(name) { return exact }
      let found = options.filter { $0.names.contains { $0.hasPrefix(name) } }
      return found.count == 1 ? found[0] : nil
    }
  }

  let commands: [Command]

  /// The definitions of the whole program.
  init() { self.init(JSONParser.parse(Qublk._dumpHelp()) ?? .null) }

  init(_ definitions: JSONValue) {
    commands = (definitions["command"]?["subcommands"]?.array ?? []).map(Self.command)
  }

  /// The subcommand with this name.
  func command(_ name: String) -> Command? { commands.first { $0.names.contains(name) } }

  private static func command(_ value: JSONValue) -> Command {
    let arguments = value["arguments"]?.array ?? []
    let aliases = value["aliases"]?.array?.compactMap(\.string) ?? []
    return Command(
      names: [value["commandName"]?.string ?? ""] + aliases,
      options: arguments.compactMap(option),
      positionals: arguments.count { $0["kind"]?.string == "positional" })
  }

  private static func option(_ value: JSONValue) -> Option? {
    let kind = value["kind"]?.string
    guard kind == "option" || kind == "flag" else { return nil }
    let names = (value["names"]?.array ?? []).compactMap { name -> String? in
      guard let text = name["name"]?.string else { return nil }
      return (name["kind"]?.string == "long" ? "--" : "-") + text
    }
    return Option(
      names: names, takesValue: kind == "option",
      values: value["allValues"]?.array?.compactMap(\.string) ?? [])
  }
}
