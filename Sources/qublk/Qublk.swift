import ArgumentParser
import CPlatform
import Daemon
import Glibc
import HostFiles
import QCOW2Codec

@main
struct Qublk: ParsableCommand {
  static let version = "0.1.0"

  static let configuration = CommandConfiguration(
    commandName: "qublk", abstract: "qcow2 images as Linux block devices.",
    version: "\(version)\nzlib clusters are read by \(InflateLibrary.best)",
    subcommands: [
      AddCommand.self, DeleteCommand.self, ListCommand.self, StatsCommand.self,
      CreateCommand.self,
      InfoCommand.self, CheckCommand.self, BenchCommand.self, IOCommand.self,
    ])

  static func main() {
    qublk_process_prepare()
    do throws(ArgumentError) { main(try ProgramArguments.all()) } catch {
      _ = writeAll(STDERR_FILENO, "qublk: \(error.text)\n")
      Glibc.exit(64)
    }
  }

  /// Every message starts with the program's name, the parser's own too.
  static var _errorPrefix: String { "qublk: " }
}

extension CommandError: CustomStringConvertible {
  /// What the parser prints after "qublk: ", with exit status 1.
  package var description: String { text }
}
