import Glibc

/// What a program left behind when it ended.
struct ShellResult {
  /// The exit status; 128 plus the signal's number if a signal ended it.
  let status: Int32
  /// Standard output and standard error, as they came.
  let output: String
}

/// A line of bash that could not do what a test needs of it.
struct ShellFailure: Error, CustomStringConvertible {
  let line: String
  let result: ShellResult
  var description: String { "\(line): status \(result.status)\n\(result.output)" }
}

/// Whether QEMU's tools are here to compare with.
let hasQEMU = (try? shell("qemu-img --version && qemu-io --version").status) == 0

/// Runs a line of bash to its end.
func shell(_ line: String) throws -> ShellResult {
  let running = try RunningShell(line)
  return running.finish()
}

/// Runs a line of bash that must succeed.
@discardableResult
func mustShell(_ line: String) throws -> String {
  let result = try shell(line)
  guard result.status == 0 else { throw ShellFailure(line: line, result: result) }
  return result.output
}

/// A line of bash that runs until its input ends.
final class RunningShell {
  private(set) var process: pid_t = 0
  private var input: Int32 = -1
  private var output: Int32 = -1

  init(_ line: String) throws {
    var (inputs, outputs): ([Int32], [Int32]) = ([0, 0], [0, 0])
    guard pipe(&inputs) == 0, pipe(&outputs) == 0 else { throw POSIXFailure(code: errno) }
    for end in inputs + outputs { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
    var actions = posix_spawn_file_actions_t()
    posix_spawn_file_actions_init(&actions)
    defer { posix_spawn_file_actions_destroy(&actions) }
    posix_spawn_file_actions_adddup2(&actions, inputs[0], 0)
    posix_spawn_file_actions_adddup2(&actions, outputs[1], 1)
    posix_spawn_file_actions_adddup2(&actions, outputs[1], 2)
    let words = ["bash", "-c", line]
    var arguments: [UnsafeMutablePointer<CChar>?] = words.map { strdup($0) }
    defer { for argument in arguments { free(argument) } }
    arguments.append(nil)
    var child: pid_t = 0
    let code = posix_spawnp(&child, "bash", &actions, nil, &arguments, environ)
    close(inputs[0])
    close(outputs[1])
    (process, input, output) = (child, inputs[1], outputs[0])
    if code != 0 { throw POSIXFailure(code: code) }
  }

  /// Waits until the program has printed `text`; false if it ends before.
  func waitFor(_ text: String) -> Bool {
    var seen = ""
    var chunk = [UInt8](repeating: 0, count: 4096)
    while !seen.contains(text) {
      let count = read(output, &chunk, chunk.count)
      if count <= 0 { return false }
      seen += String(decoding: chunk[..<count], as: UTF8.self)
    }
    return true
  }

  /// Sends a line to its input.
  func send(_ line: String) { _ = write(input, line + "\n", line.utf8.count + 1) }

  /// Ends its input and waits for its end.
  func finish() -> ShellResult {
    close(input)
    var bytes: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 65536)
    while true {
      let count = read(output, &chunk, chunk.count)
      if count < 0 && errno == EINTR { continue }
      if count <= 0 { break }
      bytes += chunk[..<count]
    }
    close(output)
    var status: Int32 = 0
    while waitpid(process, &status, 0) < 0 && errno == EINTR {}
    let signal = status & 0x7f
    return ShellResult(
      status: signal == 0 ? (status >> 8) & 0xff : 128 + signal,
      output: String(decoding: bytes, as: UTF8.self))
  }
}

/// An errno of the test's own system calls.
struct POSIXFailure: Error {
  let code: Int32
}
