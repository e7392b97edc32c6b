import CPlatform
import Glibc
import Testing

/// How a program ended and what it printed.
struct Outcome {
  /// The exit status; 128 and the signal's number if a signal ended it.
  var status: Int32
  var output: String
  var errors: String
  /// Wall time, in seconds.
  var seconds: Double
}

/// A program that runs.
struct Subprocess: ~Copyable {
  let process: pid_t
  /// Its standard input; it reads until this is closed.
  private let input: Int32
  private let output: Int32
  private let errors: Int32

  /// Starts `program`, found along PATH, in the current directory.
  init(_ program: String, _ arguments: [String]) throws {
    var (inputs, outputs, errors): ([Int32], [Int32], [Int32]) = ([-1, -1], [-1, -1], [-1, -1])
    for made in [
      qublk_pipe_cloexec(&inputs), qublk_pipe_cloexec(&outputs), qublk_pipe_cloexec(&errors),
    ] { try #require(made == 0) }
    var actions = posix_spawn_file_actions_t()
    posix_spawn_file_actions_init(&actions)
    defer { posix_spawn_file_actions_destroy(&actions) }
    posix_spawn_file_actions_adddup2(&actions, inputs[0], STDIN_FILENO)
    posix_spawn_file_actions_adddup2(&actions, outputs[1], STDOUT_FILENO)
    posix_spawn_file_actions_adddup2(&actions, errors[1], STDERR_FILENO)
    var words = ([program] + arguments).map { strdup($0) } + [nil]
    defer { for word in words { free(word) } }
    var process: pid_t = 0
    let failure = posix_spawnp(&process, program, &actions, nil, &words, environ)
    for end in [inputs[0], outputs[1], errors[1]] { close(end) }
    try #require(failure == 0, "\(program) can be started")
    (self.process, input, output) = (process, inputs[1], outputs[0])
    self.errors = errors[0]
  }

  /// Ends its input and reads what it prints until everyone who could print has closed.
  ///
  /// A program that takes longer than `limit` is killed; its status is then that of SIGKILL.
  consuming func finish(within limit: Double = 30) -> Outcome {
    close(input)
    let start = now()
    var bytes: [Int32: [UInt8]] = [output: [], errors: []]
    var waiting = [output, errors]
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
    waitpid(process, &status, 0)
    close(output)
    close(errors)
    let signal = qublk_wait_signal(status)
    return Outcome(
      status: signal != 0 ? 128 + signal : qublk_wait_exit(status),
      output: String(decoding: bytes[output] ?? [], as: UTF8.self),
      errors: String(decoding: bytes[errors] ?? [], as: UTF8.self), seconds: seconds)
  }
}

private func readable(_ descriptor: Int32, milliseconds: Int32) -> Bool {
  var entry = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
  return poll(&entry, 1, milliseconds) > 0
}

func now() -> Double {
  var time = timespec()
  clock_gettime(CLOCK_MONOTONIC, &time)
  return Double(time.tv_sec) + Double(time.tv_nsec) / 1e9
}

func run(_ program: String, _ arguments: String...) throws -> Outcome {
  try Subprocess(program, arguments).finish()
}

/// Runs the qublk that was built beside these tests.
func qublk(_ arguments: String...) throws -> Outcome {
  try Subprocess(qublkPath(), arguments).finish()
}

func qublkPath() throws -> String {
  let path = try #require(realpath("/proc/self/exe", nil))
  defer { free(path) }
  // Swift Testing may run in the bundle's own process or in a helper of the toolchain.
  let candidates = [String(cString: path)] + CommandLine.arguments
  for candidate in candidates {
    let directory = candidate[..<(candidate.lastIndex(of: "/") ?? candidate.startIndex)]
    if access("\(directory)/qublk", X_OK) == 0, candidate.hasSuffix(".xctest") {
      return "\(directory)/qublk"
    }
  }
  Issue.record("there is no qublk beside \(candidates)")
  return "qublk"
}
