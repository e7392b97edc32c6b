import Foundation
import TestTools

/// Programs of the host, run in a folder that goes away with the test.
enum Shell {
  /// What a program said and how it ended.
  struct Answer {
    let status: Int32
    let out: String
    let err: String
  }

  /// Whether QEMU's tools are here to compare with.
  static let hasQEMU: Bool = run("qemu-img --version && qemu-io --version").status == 0

  /// Runs a line of bash.
  static func run(_ line: String, in folder: String = "/tmp") -> Answer {
    do {
      let outcome = try Subprocess("bash", ["-c", "cd '\(folder)' && \(line)"]).finish()
      return Answer(status: outcome.status, out: outcome.output, err: outcome.errors)
    } catch { return Answer(status: 127, out: "", err: "\(error)") }
  }
}

/// A folder for images, removed at the end.
final class Folder: Sendable {
  let path: String

  init() {
    path = "/tmp/qublk-tools-\(UUID().uuidString)"
    try? FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
  }

  deinit { try? FileManager.default.removeItem(atPath: path) }

  func bytes(_ name: String) -> [UInt8] {
    [UInt8](FileManager.default.contents(atPath: "\(path)/\(name)") ?? Data())
  }

  func write(_ bytes: [UInt8], _ name: String) {
    _ = FileManager.default.createFile(atPath: "\(path)/\(name)", contents: Data(bytes))
  }

  @discardableResult func run(_ line: String) -> Shell.Answer { Shell.run(line, in: path) }
}
