import ArgumentParser
import BlockCore
import CPlatform
import Daemon
import Glibc
import HostFiles
import QCOW2Codec
import QCOW2Tools

@main
struct Qublk: ParsableCommand {
  static let version = "0.1.0"

  static let configuration = CommandConfiguration(
    commandName: "qublk", abstract: "qcow2 images as Linux block devices.",
    version: "\(version)\nzlib clusters are read by \(InflateLibrary.best)",
    subcommands: [
      AddCommand.self, DeleteCommand.self, RecoverCommand.self, ListCommand.self, StatsCommand.self,
      CreateCommand.self,
      InfoCommand.self, CheckCommand.self, MapCommand.self, MeasureCommand.self,
      ConvertCommand.self, DDCommand.self, CompareCommand.self, SnapshotCommand.self,
      ResizeCommand.self, CompactCommand.self, AmendCommand.self, CommitCommand.self,
      RebaseCommand.self, SalvageCommand.self, VMStateCommand.self, BitmapCommand.self,
      BackupCommand.self, RestoreCommand.self, BenchCommand.self, IOCommand.self,
    ])

  static func main() {
    qublk_process_prepare()
    let words: [String]
    do throws(ArgumentError) { words = try ProgramArguments.all() } catch {
      complain(error.text)
      Glibc.exit(64)
    }
    var command = parsed(words)
    do { try command.run() } catch { end(error, words) }
  }

  /// The command that words stand for: as the parser takes them, else as getopt(3) would; ends the
  /// program where they are none, or ask for help.
  private static func parsed(_ words: [String]) -> any ParsableCommand {
    let isHelp = words.first == "help" && words.count > 1
    if !isHelp {
      do { return try parseAsRoot(words) } catch {
        if exitCode(for: error) == .success { end(error, words) }
      }
    }
    let tree = CommandTree()
    do throws(GetoptWords.Problem) {
      if isHelp, tree.command(words[1]) == nil { throw .noSuchCommand(words[1]) }
      let normal = try GetoptWords(words, tree).words
      do { return try parseAsRoot(normal) } catch { end(error, words) }
    } catch {
      complain(error.text(tree))
      Glibc.exit(UsageStatus.of(words))
    }
  }

  /// Ends the program with what there is to say, and the exit status that fits the command.
  private static func end(_ error: any Error, _ words: [String]) -> Never {
    let code = exitCode(for: error)
    let text = fullMessage(for: error)
    if code == .success {
      if text.isEmpty || writeAll(STDOUT_FILENO, text + "\n") { Glibc.exit(0) }
      complain("standard output: write: \(Errno(errno))")
      Glibc.exit(1)
    }
    if !text.isEmpty { complain(lines: text) }
    DamageNotes.write()
    Glibc.exit(code == .validationFailure ? UsageStatus.of(words) : code.rawValue)
  }

  private static func complain(_ text: String) { complain(lines: "qublk: \(text)") }

  private static func complain(lines: String) {
    _ = writeAll(STDERR_FILENO, lines + "\n")  // nowhere left to complain
  }

  /// Every message starts with the program's name, the parser's own too.
  static var _errorPrefix: String { "qublk: " }
}

extension CommandError: CustomStringConvertible {
  /// What the parser prints after "qublk: ", with exit status 1.
  package var description: String { text }
}
