import BlockCore
import CPlatform
import Glibc
import HostFiles
import Logging

/// Starts a daemon in a child process and hears from it when it is ready, or why it is not.
///
/// The child reports through a pipe: first byte R (ready) or E (error), then the text that the parent
/// prints. If the pipe closes without a report, the child has died [UBLK-14, UBLK-29]. The parent confirms
/// through a second pipe that it printed the text. If that pipe closes without a confirmation, the parent
/// has died and nobody knows the device, so the child removes it. The fork comes before any other thread,
/// and before the ublk nodes are opened, which one process must own [UBLK-15].
package enum Launch {
  /// Runs `daemon` in a child, with a ``ReadySignal`` that it gives when it serves.
  ///
  /// Returns in the parent only, when the child is ready; the child ends in here. Standard input
  /// and output of the child are /dev/null from the start, so that `$(qublk add …)` ends;
  /// standard error stays the user's until the child has a log.
  ///
  /// - Parameters:
  ///   - daemon: The child's work.
  ///   - output: Prints what the child wants printed; if it throws, the device stays all the same, for
  ///     the error says so.
  /// - Throws: Why there is no device, or what `output` throws.
  package static func detached(
    _ daemon: (ReadySignal) throws(CommandError) -> Void,
    output: (String) throws(CommandError) -> Void
  ) throws(CommandError) {
    var ends: [Int32] = [-1, -1]
    var answers: [Int32] = [-1, -1]
    guard unsafe qublk_pipe_cloexec(&ends) == 0, unsafe qublk_pipe_cloexec(&answers) == 0
    else { throw .fork(Errno(errno)) }
    let child = qublk_process_fork()
    guard child >= 0 else { throw .fork(Errno(errno)) }
    if child == 0 {
      close(ends[0])
      close(answers[1])
      runChild(ReadySignal(pipe: ends[1], answer: answers[0]), daemon)
    }
    close(ends[1])
    close(answers[0])
    defer {
      close(ends[0])
      close(answers[1])
    }
    let text = try report(of: child, from: ends[0])
    defer { _ = writeAll(answers[1], "P") }
    try output(text)
  }

  private static func runChild(
    _ ready: ReadySignal, _ daemon: (ReadySignal) throws(CommandError) -> Void
  ) -> Never {
    setsid()
    unsafe chdir("/")
    umask(0o077)
    do throws(CommandError) {
      try leaveInputAndOutput()
      try daemon(ready)
      exit(0)
    } catch {
      ready.fail(error)
      exit(1)
    }
  }

  /// A daemon that kept the caller's output would keep `$(qublk add …)` from ending.
  private static func leaveInputAndOutput() throws(CommandError) {
    let null = unsafe qublk_open_file("/dev/null", O_RDWR, 0)
    guard null >= 0 else { throw .file("/dev/null", .open, Errno(errno)) }
    defer { if null > STDERR_FILENO { close(null) } }
    for standard in [STDIN_FILENO, STDOUT_FILENO] where dup2(null, standard) < 0 {
      throw .file("/dev/null", .open, Errno(errno))
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
package final class ReadySignal {
  /// Whether the user's terminal stays the daemon's.
  let isForeground: Bool
  /// The supervisor of a server that takes the place of a dead one; nil for all others.
  private let restart: SupervisorLink?
  /// The pipe; -1 once used and with `--foreground`.
  private var pipe: Int32
  /// Where the parent tells that it has printed; -1 with `--foreground`.
  private let answer: Int32

  /// With `--foreground`.
  package init() {
    isForeground = true
    restart = nil
    pipe = -1
    answer = -1
  }

  init(pipe: Int32, answer: Int32) {
    isForeground = false
    restart = nil
    self.pipe = pipe
    self.answer = answer
  }

  /// For a server that takes the place of a dead one: nobody waits for a text.
  init(restartFor link: SupervisorLink) {
    isForeground = false
    restart = link
    pipe = -1
    answer = -1
  }

  /// Whether standard error is the user's, until there is a log.
  var needsLog: Bool { !isForeground && restart == nil }

  /// Lets go of the pipes, which a child has.
  func leave() {
    if pipe >= 0 { endPipe() }
    if answer >= 0 { close(answer) }
  }

  /// Has `text` printed for the user.
  ///
  /// To be called once.
  ///
  /// - Throws: If nobody is there to read it: a device that nobody knows of must not stay.
  package func give(_ text: String) throws(CommandError) {
    if restart != nil { return }
    guard !isForeground else {
      guard writeAll(STDOUT_FILENO, text + "\n") else { throw .output(Errno(errno)) }
      return
    }
    guard writeAll(pipe, "R" + text) else { throw .startAbandoned }
    endPipe()
    guard isPrinted() else { throw .startAbandoned }
  }

  /// Whether the parent has printed, or is at it: one that can't go on for long is not waited for.
  private func isPrinted() -> Bool {
    defer { close(answer) }
    var events = pollfd(fd: answer, events: Int16(POLLIN), revents: 0)
    while true {
      let ready = unsafe poll(&events, 1, 10_000)
      if ready < 0 && errno == EINTR { continue }
      if ready <= 0 { return true }
      var byte: UInt8 = 0
      let count = unsafe read(answer, &byte, 1)
      if count < 0 && errno == EINTR { continue }
      return count == 1
    }
  }

  /// Tells the parent why there will be no device, or after ``give(_:)`` the log what went wrong.
  func fail(_ error: CommandError) {
    if let restart { return restart.tell(error) }
    guard pipe >= 0, writeAll(pipe, "E" + error.text) else {
      Log.logger.error("\(error.text)")
      return
    }
    endPipe()
  }

  private func endPipe() {
    close(pipe)
    pipe = -1
  }
}
