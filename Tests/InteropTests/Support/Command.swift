import Glibc
import Synchronization

/// What a program left behind when it ended.
struct CommandResult {
  /// The exit status; 128 plus the signal's number if a signal ended it.
  let status: Int32
  /// Standard output and standard error, as they came.
  let output: String

  var succeeded: Bool { status == 0 }
}

/// A program that could not do what a test needs of it.
struct CommandFailure: Error, CustomStringConvertible {
  let words: [String]
  let result: CommandResult

  var description: String {
    "\(words.joined(separator: " ")): status \(result.status)\n\(result.output)"
  }
}

private let spawning = Mutex(())

/// Runs a program of the PATH to its end.
func run(_ words: [String]) throws -> CommandResult {
  var ends: [Int32] = [0, 0]
  guard pipe(&ends) == 0 else { throw POSIXFailure(code: errno) }
  for end in ends { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
  defer { close(ends[0]) }
  var actions = posix_spawn_file_actions_t()
  posix_spawn_file_actions_init(&actions)
  defer { posix_spawn_file_actions_destroy(&actions) }
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)
  posix_spawn_file_actions_adddup2(&actions, ends[1], 1)
  posix_spawn_file_actions_adddup2(&actions, ends[1], 2)
  var arguments = words.map { strdup($0) }
  defer { for argument in arguments { free(argument) } }
  arguments.append(nil)
  var child: pid_t = 0
  // One at a time, and it returns when the program runs: no other program of ours may start while
  // this one still has our files open, and with them the locks that we have just let go of.
  let code = spawning.withLock { _ in
    posix_spawnp(&child, words[0], &actions, nil, arguments, environ)
  }
  close(ends[1])
  if code != 0 { throw POSIXFailure(code: code) }
  let output = readAll(ends[0])
  var status: Int32 = 0
  while waitpid(child, &status, 0) < 0 && errno == EINTR {}
  let signal = status & 0x7f
  return CommandResult(
    status: signal == 0 ? (status >> 8) & 0xff : 128 + signal, output: output)
}

/// Runs a program that must succeed, and returns its output.
@discardableResult
func mustRun(_ words: String...) throws -> String {
  let result = try run(words)
  guard result.succeeded else { throw CommandFailure(words: words, result: result) }
  return result.output
}

/// An errno of the test's own system calls.
struct POSIXFailure: Error {
  let code: Int32
}

private func readAll(_ descriptor: Int32) -> String {
  var bytes: [UInt8] = []
  var chunk = [UInt8](repeating: 0, count: 65536)
  while true {
    let count = read(descriptor, &chunk, chunk.count)
    if count < 0 && errno == EINTR { continue }
    if count <= 0 { break }
    bytes += chunk[..<count]
  }
  return String(decoding: bytes, as: UTF8.self)
}
