import TestTools

/// Programs of the host, run in a folder that goes away with the test.
enum Shell {
  /// What a program said and how it ended.
  struct Answer {
    let status: Int32
    let out: String
    let err: String
  }

  /// Runs a line of bash.
  static func run(_ line: String, in folder: String = "/tmp") -> Answer {
    do {
      let outcome = try Subprocess("bash", ["-c", "cd '\(folder)' && \(line)"]).finish()
      return Answer(status: outcome.status, out: outcome.output, err: outcome.errors)
    } catch { return Answer(status: 127, out: "", err: "\(error)") }
  }
}

typealias Folder = TemporaryDirectory

extension TemporaryDirectory {
  convenience init() throws { try self.init(in: "/tmp") }

  /// Empty for a file that is not there.
  func bytes(_ name: String) -> [UInt8] { (try? contents(file(name))) ?? [] }

  func write(_ bytes: [UInt8], _ name: String) throws {
    try TestTools.write(bytes, to: file(name))
  }

  @discardableResult func run(_ line: String) -> Shell.Answer { Shell.run(line, in: path) }
}
