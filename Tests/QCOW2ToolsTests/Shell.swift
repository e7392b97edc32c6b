import Foundation

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
    let id = UUID().uuidString
    let outPath = "/tmp/qublk-out-\(id)"
    let errPath = "/tmp/qublk-err-\(id)"
    _ = FileManager.default.createFile(atPath: outPath, contents: nil)
    _ = FileManager.default.createFile(atPath: errPath, contents: nil)
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/bin/bash")
    process.arguments = ["-c", line]
    process.currentDirectoryURL = URL(fileURLWithPath: folder)
    process.standardOutput = FileHandle(forWritingAtPath: outPath)
    process.standardError = FileHandle(forWritingAtPath: errPath)
    do { try process.run() } catch { return Answer(status: 127, out: "", err: "\(error)") }
    process.waitUntilExit()
    defer {
      try? FileManager.default.removeItem(atPath: outPath)
      try? FileManager.default.removeItem(atPath: errPath)
    }
    return Answer(
      status: process.terminationStatus, out: text(outPath), err: text(errPath))
  }

  private static func text(_ path: String) -> String {
    String(decoding: FileManager.default.contents(atPath: path) ?? Data(), as: UTF8.self)
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

/// Numbers that look random and come again with the same seed (SplitMix64).
struct SeededGenerator: RandomNumberGenerator {
  private var state: UInt64
  init(seed: UInt64) { state = seed }

  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var mixed = state
    mixed = (mixed ^ (mixed >> 30)) &* 0xbf58_476d_1ce4_e5b9
    mixed = (mixed ^ (mixed >> 27)) &* 0x94d0_49bb_1331_11eb
    return mixed ^ (mixed >> 31)
  }
}
