import Glibc
import TestTools
import Testing

/// A program that could not do what a test needs of it.
struct CommandFailure: Error, CustomStringConvertible {
  let description: String
}

/// Runs a program of the PATH to its end; its errors come with its output.
func run(_ words: [String]) throws -> Outcome {
  try Subprocess(words[0], Array(words.dropFirst()), joinsErrors: true).finish()
}

/// Runs a program that must succeed, and returns its output.
@discardableResult
func mustRun(_ words: [String]) throws -> String {
  let outcome = try run(words)
  let (status, output) = (outcome.status, outcome.output)
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
      let outcome = try run(words)
      if outcome.succeeded { return }
      guard outcome.output.contains("accurate CPU usage") else {
        throw CommandFailure(description: "\(words.joined(separator: " ")): \(outcome.output)")
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
