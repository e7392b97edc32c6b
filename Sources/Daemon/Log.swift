import BlockCore
import CPlatform
import Glibc
import HostFiles
import Logging
import Synchronization

/// What a daemon has to say after its start, by swift-log: lines on standard error.
///
/// That is the terminal with `--foreground`, else the journal or the log file. The traps of the
/// Swift runtime go there too.
enum Log {
  /// The daemon's logger; each message is one line.
  static let logger = Logger(label: "qublk") { _ in LineHandler() }

  private static let journalSocket = "/run/systemd/journal/stdout"

  /// Whether lines start with their level, as the journal wants them ("<4>").
  private static let marksLevels = Atomic(isJournal(STDERR_FILENO))

  /// Points standard error at the journal where there is one, else at `file`.
  static func redirect(orTo file: String) throws(CommandError) {
    let stream = journalStream()
    let descriptor = unsafe stream >= 0 ? stream : qublk_open_file(file, O_WRONLY | O_APPEND, 1)
    guard descriptor >= 0 else { throw .file(file, .create, Errno(errno)) }
    defer { if descriptor != STDERR_FILENO { close(descriptor) } }
    guard dup2(descriptor, STDERR_FILENO) >= 0 else { throw .file(file, .open, Errno(errno)) }
    marksLevels.store(stream >= 0, ordering: .relaxed)
  }

  /// A stream to the journal, or -1.
  ///
  /// The seven lines are identifier, unit, priority, whether lines carry a level, and whether to
  /// forward to syslog, kmsg and console.
  private static func journalStream() -> Int32 {
    let descriptor = unsafe qublk_unix_connect(journalSocket)
    guard descriptor >= 0 else { return -1 }
    guard writeAll(descriptor, "qublk\n\n6\n1\n0\n0\n0\n") else {
      close(descriptor)
      return -1
    }
    return descriptor
  }

  /// Whether systemd connected this descriptor to the journal: then it is the one that
  /// `JOURNAL_STREAM` names, which processes further down inherit even with another one.
  private static func isJournal(_ descriptor: Int32) -> Bool {
    var status = stat()
    guard let named = unsafe getenv("JOURNAL_STREAM"), unsafe fstat(descriptor, &status) == 0 else {
      return false
    }
    return unsafe String(cString: named) == "\(status.st_dev):\(status.st_ino)"
  }

  /// Writes messages, and behind them what else there is to say, as lines.
  struct LineHandler: LogHandler {
    var logLevel = Logger.Level.info
    var metadata: Logger.Metadata = [:]

    subscript(metadataKey key: String) -> Logger.Metadata.Value? {
      get { metadata[key] }
      set { metadata[key] = newValue }
    }

    func log(event: LogEvent) {
      let all = metadata.merging(event.metadata ?? [:]) { $1 }
      let more = all.sorted { $0.key < $1.key }.map { " \($0.key)=\($0.value)" }.joined()
      let mark = marksLevels.load(ordering: .relaxed) ? Self.priority(event.level) : ""
      _ = writeAll(STDERR_FILENO, "\(mark)qublk: \(event.message)\(more)\n")
    }

    /// The level as the journal and syslog(3) have it.
    static func priority(_ level: Logger.Level) -> String {
      switch level {
      case .trace, .debug: "<7>"
      case .info: "<6>"
      case .notice: "<5>"
      case .warning: "<4>"
      case .error: "<3>"
      case .critical: "<2>"
      }
    }
  }
}
