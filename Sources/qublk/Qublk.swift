import ArgumentParser

@main
struct Qublk: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "qublk", abstract: "qcow2 images as Linux block devices.", version: "0.1.0",
    subcommands: [CreateCommand.self, InfoCommand.self, CheckCommand.self])
}
