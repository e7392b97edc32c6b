import BlockCore
import CPlatform
import Glibc
import Synchronization

/// What a daemon has to say after its start: lines on standard error.
///
/// That is the terminal with `--foreground`, else the journal or the log file. The traps of the
/// Swift runtime go there too.
enum Log {
  private static let journalSocket = "/run/systemd/journal/stdout"

  /// Whether lines start with their level, as the journal wants them ("<4>").
  private static let marksLevels = Atomic(isJournal(STDERR_FILENO))

  static func error(_ text: String) { line("<3>", text) }
  static func warning(_ text: String) { line("<4>", text) }
  static func info(_ text: String) { line("<6>", text) }

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

  private static func line(_ level: String, _ text: String) {
    let mark = marksLevels.load(ordering: .relaxed) ? level : ""
    _ = writeAll(STDERR_FILENO, "\(mark)qublk: \(text)\n")
  }
}
