import CPlatform
package import Glibc
import Synchronization

/// How a program ended and what it printed.
package struct Outcome: Sendable {
  /// The exit status; 128 and the signal's number if a signal ended it.
  package var status: Int32
  package var output: String
  /// Empty if they were joined with the output.
  package var errors: String
  /// Wall time, in seconds.
  package var seconds: Double

  package init(status: Int32, output: String, errors: String = "", seconds: Double = 0) {
    (self.status, self.output, self.errors, self.seconds) = (status, output, errors, seconds)
  }

  package var succeeded: Bool { status == 0 }
}

/// An errno of the test's own system calls.
package struct POSIXFailure: Error, CustomStringConvertible {
  package let code: Int32
  private let what: String

  package init(code: Int32, _ what: String = "") { (self.code, self.what) = (code, what) }

  package var description: String { "\(what): errno \(code)" }
}

/// A program that runs.
package struct Subprocess: ~Copyable {
  package let process: pid_t
  /// Its standard input; it reads until this is closed.
  private let input: Int32
  private let output: Int32
  /// -1 if the program writes its errors to `output`.
  private let errors: Int32

  /// Starts a program, found along PATH, in the current directory.
  ///
  /// - Parameters:
  ///   - program: Its name or path.
  ///   - arguments: Those after the name.
  ///   - joinsErrors: Whether what it writes to its standard error comes with its output, in order.
  /// - Throws: `POSIXFailure` if it can't be started.
  package init(
    _ program: String, _ arguments: [String], joinsErrors: Bool = false
  ) throws(POSIXFailure) {
    let (inputs, outputs) = (try Self.pipe(), try Self.pipe())
    let errors = joinsErrors ? [-1, -1] : try Self.pipe()
    let writes = joinsErrors ? outputs[1] : errors[1]
    var actions = posix_spawn_file_actions_t()
    posix_spawn_file_actions_init(&actions)
    defer { posix_spawn_file_actions_destroy(&actions) }
    posix_spawn_file_actions_adddup2(&actions, inputs[0], STDIN_FILENO)
    posix_spawn_file_actions_adddup2(&actions, outputs[1], STDOUT_FILENO)
    posix_spawn_file_actions_adddup2(&actions, writes, STDERR_FILENO)
    var words = ([program] + arguments).map { strdup($0) } + [nil]
    defer { for word in words { free(word) } }
    var process: pid_t = 0
    let failure = spawning.withLock { _ in
      posix_spawnp(&process, program, &actions, nil, &words, environ)
    }
    for end in [inputs[0], outputs[1], errors[1]] where end >= 0 { close(end) }
    guard failure == 0 else {
      for end in [inputs[1], outputs[0], errors[0]] where end >= 0 { close(end) }
      throw POSIXFailure(code: failure, program)
    }
    (self.process, input, output, self.errors) = (process, inputs[1], outputs[0], errors[0])
  }

  private static func pipe() throws(POSIXFailure) -> [Int32] {
    var ends: [Int32] = [-1, -1]
    guard qublk_pipe_cloexec(&ends) == 0 else { throw POSIXFailure(code: errno, "pipe") }
    return ends
  }

  /// Sends a line to its input.
  package func send(_ line: String) { _ = write(input, line + "\n", line.utf8.count + 1) }

  /// Waits until the program has printed `text`; false if it ends before.
  ///
  /// What was read is gone.
  package func waitFor(_ text: String) -> Bool {
    var seen = ""
    var chunk = [UInt8](repeating: 0, count: 4096)
    while !seen.contains(text) {
      let count = read(output, &chunk, chunk.count)
      if count <= 0 { return false }
      seen += String(decoding: chunk[..<count], as: UTF8.self)
    }
    return true
  }

  /// Ends its input and reads what it prints until everyone who could print has closed.
  ///
  /// A program that takes longer than `limit` seconds is killed; its status is then that of SIGKILL.
  package consuming func finish(within limit: Double = .infinity) -> Outcome {
    close(input)
    let start = now()
    var bytes: [Int32: [UInt8]] = [output: [], errors: []]
    var waiting = [output, errors].filter { $0 >= 0 }
    while !waiting.isEmpty {
      if now() - start > limit {
        kill(process, SIGKILL)
        break
      }
      for descriptor in waiting where readable(descriptor, milliseconds: 20) {
        var chunk = [UInt8](repeating: 0, count: 65536)
        let count = read(descriptor, &chunk, chunk.count)
        if count > 0 { bytes[descriptor, default: []] += chunk[..<count] }
        if count == 0 { waiting.removeAll { $0 == descriptor } }
      }
    }
    let seconds = now() - start
    var status: Int32 = 0
    while waitpid(process, &status, 0) < 0 && errno == EINTR {}
    close(output)
    if errors >= 0 { close(errors) }
    let signal = qublk_wait_signal(status)
    return Outcome(
      status: signal != 0 ? 128 + signal : qublk_wait_exit(status),
      output: String(decoding: bytes[output] ?? [], as: UTF8.self),
      errors: String(decoding: bytes[errors] ?? [], as: UTF8.self), seconds: seconds)
  }
}

/// One start at a time, and it returns when the program runs: no other program of ours may start while
/// this one still has our files open, and with them the locks that we have just let go of.
private let spawning = Mutex(())

private func readable(_ descriptor: Int32, milliseconds: Int32) -> Bool {
  var entry = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
  return poll(&entry, 1, milliseconds) > 0
}

/// Seconds of the monotonic clock.
package func now() -> Double {
  var time = timespec()
  clock_gettime(CLOCK_MONOTONIC, &time)
  return Double(time.tv_sec) + Double(time.tv_nsec) / 1e9
}
