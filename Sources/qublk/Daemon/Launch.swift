import BlockCore
import CPlatform
import Glibc

/// Starts a daemon in a child process and hears from it when it is ready, or why it is not.
///
/// The child tells through a pipe, first byte R (ready) or E (error), then what the parent is to
/// print; a pipe that ends without either is a child that died [UBLK-14, UBLK-29]. The fork comes
/// before any other thread and before the ublk nodes are opened, which one process must own
/// [UBLK-15].
enum Launch {
  /// Runs `daemon` in a child, with a ``ReadySignal`` that it gives when it serves.
  ///
  /// Returns in the parent only, when the child is ready; the child ends in here. Standard input
  /// and output of the child are /dev/null from the start, so that `$(qublk add …)` ends;
  /// standard error stays the user's until the child has a log.
  ///
  /// - Returns: What the child wants printed.
  static func detached(
    _ daemon: (ReadySignal) throws(CommandError) -> Void
  ) throws(CommandError) -> String {
    var ends: [Int32] = [-1, -1]
    guard unsafe qublk_pipe_cloexec(&ends) == 0 else { throw .fork(Errno(errno)) }
    let child = qublk_process_fork()
    guard child >= 0 else { throw .fork(Errno(errno)) }
    if child == 0 {
      close(ends[0])
      runChild(ReadySignal(pipe: ends[1]), daemon)
    }
    close(ends[1])
    defer { close(ends[0]) }
    return try report(of: child, from: ends[0])
  }

  private static func runChild(
    _ ready: ReadySignal, _ daemon: (ReadySignal) throws(CommandError) -> Void
  ) -> Never {
    setsid()
    unsafe chdir("/")
    umask(0o077)
    let null = unsafe qublk_open_file("/dev/null", O_RDWR, 0)
    dup2(null, STDIN_FILENO)
    dup2(null, STDOUT_FILENO)
    close(null)
    do throws(CommandError) {
      try daemon(ready)
      exit(0)
    } catch {
      ready.fail(error)
      exit(1)
    }
  }

  private static func report(of child: pid_t, from pipe: Int32) throws(CommandError) -> String {
    let message = readAll(pipe) ?? ""
    switch message.first {
    case "R": return String(message.dropFirst())
    case "E": throw .startFailed(String(message.dropFirst()))
    default:
      var status: Int32 = 0
      unsafe waitpid(child, &status, 0)
      throw .startSilent(status: status)
    }
  }
}

/// The way a daemon tells that it serves: to the parent through a pipe, or on standard output.
final class ReadySignal {
  /// Whether the user's terminal stays the daemon's.
  let isForeground: Bool
  /// The pipe; -1 once used and with `--foreground`.
  private var pipe: Int32

  /// With `--foreground`.
  init() {
    isForeground = true
    pipe = -1
  }

  init(pipe: Int32) {
    isForeground = false
    self.pipe = pipe
  }

  /// Has `text` printed for the user.
  ///
  /// To be called once.
  ///
  /// - Throws: If nobody is there to read it: a device that nobody knows of must not stay.
  func give(_ text: String) throws(CommandError) {
    guard !isForeground else {
      guard writeAll(STDOUT_FILENO, text + "\n") else { throw .output(Errno(errno)) }
      return
    }
    guard writeAll(pipe, "R" + text) else { throw .startAbandoned }
    endPipe()
  }

  /// Tells the parent why there will be no device, or after ``give(_:)`` the log what went wrong.
  func fail(_ error: CommandError) {
    guard pipe >= 0, writeAll(pipe, "E" + error.text) else {
      Log.error(error.text)
      return
    }
    endPipe()
  }

  private func endPipe() {
    close(pipe)
    pipe = -1
  }
}
