import Glibc
import Testing

/// A program that could not do what a test needs of it.
struct CommandFailure: Error, CustomStringConvertible {
  let description: String
}

/// Runs a program of the PATH to its end.
///
/// - Returns: Its exit status, and both its outputs as they came.
func run(_ words: [String]) throws -> (status: Int32, output: String) {
  var ends: [Int32] = [0, 0]
  guard pipe(&ends) == 0 else { throw CommandFailure(description: "pipe: errno \(errno)") }
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
  let code = posix_spawnp(&child, words[0], &actions, nil, arguments, environ)
  close(ends[1])
  if code != 0 { throw CommandFailure(description: "\(words[0]): errno \(code)") }
  var bytes: [UInt8] = []
  var chunk = [UInt8](repeating: 0, count: 65536)
  while true {
    let count = read(ends[0], &chunk, chunk.count)
    if count < 0 && errno == EINTR { continue }
    if count <= 0 { break }
    bytes += chunk[..<count]
  }
  var status: Int32 = 0
  while waitpid(child, &status, 0) < 0 && errno == EINTR {}
  let signal = status & 0x7f
  return (signal == 0 ? (status >> 8) & 0xff : 128 + signal, String(decoding: bytes, as: UTF8.self))
}

/// Runs a program that must succeed, and returns its output.
@discardableResult
func mustRun(_ words: [String]) throws -> String {
  let (status, output) = try run(words)
  guard status == 0, !output.contains("failed"), !output.contains("error") else {
    throw CommandFailure(description: "\(words.joined(separator: " ")): \(status)\n\(output)")
  }
  return output
}

/// The other implementation.
enum Qemu {
  static let isInstalled =
    (try? run(["qemu-img", "--version"]).status) == 0
    && (try? run(["qemu-io", "--version"]).status) == 0
  static let reason: Comment = "needs qemu-img and qemu-io in the PATH"

  /// Makes an encrypted image.
  ///
  /// QEMU measures its iterations with a clock that it finds too coarse now and then; it is asked
  /// again then.
  static func create(_ path: String, secret: String, options: String, format: String = "qcow2")
    throws
  {
    let words = [
      "qemu-img", "create", "-q", "-f", format, "--object", "secret,id=s,data=\(secret)", "-o",
      options, path, "1M",
    ]
    for _ in 0..<200 {
      let (status, output) = try run(words)
      if status == 0 { return }
      guard output.contains("accurate CPU usage") else {
        throw CommandFailure(description: "\(words.joined(separator: " ")): \(output)")
      }
    }
    throw CommandFailure(description: "qemu-img never found the processor's clock accurate")
  }

  static func io(_ image: String, secret: String, _ commands: [String]) throws {
    try mustRun(
      ["qemu-io", "--object", "secret,id=s,data=\(secret)"] + commands.flatMap { ["-c", $0] }
        + ["--image-opts", image])
  }
}

/// A directory in /tmp that goes away with the object.
final class Scratch {
  let path: String

  init() throws {
    var template = Array("/tmp/qublk-codec-XXXXXX".utf8CString)
    guard mkdtemp(&template) != nil else { throw CommandFailure(description: "errno \(errno)") }
    path = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
  }

  deinit { _ = try? run(["rm", "-rf", path]) }

  func file(_ name: String) -> String { path + "/" + name }
}

func contents(_ path: String) throws -> [UInt8] {
  guard let file = fopen(path, "re") else {
    throw CommandFailure(description: "\(path): errno \(errno)")
  }
  defer { fclose(file) }
  var bytes: [UInt8] = []
  var chunk = [UInt8](repeating: 0, count: 1 << 20)
  while case let count = fread(&chunk, 1, chunk.count, file), count > 0 { bytes += chunk[..<count] }
  return bytes
}

func write(_ bytes: [UInt8], to path: String) throws {
  guard let file = fopen(path, "we") else {
    throw CommandFailure(description: "\(path): errno \(errno)")
  }
  defer { fclose(file) }
  guard fwrite(bytes, 1, bytes.count, file) == bytes.count else {
    throw CommandFailure(description: "\(path): errno \(errno)")
  }
}
