import Glibc
import TestTools
import Testing

/// What a conversion leaves that does not come to its end.
///
/// The source is never touched, and no target is taken for the whole that is not.
@Suite(.enabled(if: Tools.hasQEMU, Tools.reason))
struct InterruptedConversionTests {
  /// A raw source whose every 64 KiB are different.
  private static func source(_ directory: TemporaryDirectory, megabytes: Int) throws -> String {
    let path = directory.file("source")
    try mustShell("head -c \(megabytes)M /dev/urandom > \(path)")
    return path
  }

  private static let ways: [[String]] = [
    ["-O", "raw"], ["-O", "qcow2"], ["-c", "-O", "qcow2"], ["-S", "0", "-O", "qcow2", "-m", "16"],
    ["-O", "qcow2", "-t", "writeback"],
  ]

  @Test(arguments: ways)
  func killedAtAnyMoment(_ words: [String]) throws {
    let directory = try TemporaryDirectory(in: "/dev/shm")
    let source = try Self.source(directory, megabytes: 20)
    let sum = try mustRun("md5sum", source)
    let target = directory.file("target")
    let qublk = try #require(Tools.qublkPath)
    let format = words.contains("qcow2") ? "qcow2" : "raw"
    var random = SeededGenerator(seed: TwinCount.seed &+ UInt64(words.count))
    var unfinished = 0
    for _ in 0..<12 {
      unlink(target)
      let line = ([qublk, "convert", "-f", "raw", "-r", "60M"] + words + [source, target])
        .map { "'\($0)'" }.joined(separator: " ")
      let delay = Double(random.below(600)) / 1000
      let result = try shell("timeout -s KILL \(delay + 0.001) \(line)")
      #expect(try mustRun("md5sum", source) == sum)
      guard fileExists(target) else { continue }
      let same = try Tools.qemu(
        "qemu-img", ["compare", "-f", "raw", "-F", format, source, target], in: directory.path)
      if result.succeeded { #expect(same.status == 0) }
      if same.status == 0 && !same.output.contains("Warning") {
        if format == "qcow2" {
          let check = try Tools.qemu("qemu-img", ["check", "-q", target], in: directory.path)
          #expect(check.status == 0 || check.status == 3, "\(words): \(check.output)")
        }
      } else if format == "qcow2" {
        // It is no image: qemu-img cannot open it.
        #expect(same.status == 2, "\(words) after \(delay) s: \(same.output)\(same.errors)")
        unfinished += 1
      } else {
        // It is shorter than the source.
        let sizes = try [source, target].map { try mustRun("stat", "-c", "%s", $0) }
        #expect(sizes[0] != sizes[1], "\(words) after \(delay) s")
        unfinished += 1
      }
    }
    print("convert \(words): \(unfinished) of 12 kills left an incomplete target")
  }

  @Test(arguments: ways, ["INT", "TERM"])
  func aSignalRemovesWhatWasMade(_ words: [String], _ signal: String) throws {
    let directory = try TemporaryDirectory(in: "/dev/shm")
    let source = try Self.source(directory, megabytes: 16)
    let sum = try mustRun("md5sum", source)
    let target = directory.file("target")
    let qublk = try #require(Tools.qublkPath)
    let line = ([qublk, "convert", "-f", "raw", "-r", "20M"] + words + [source, target])
      .map { "'\($0)'" }.joined(separator: " ")
    let result = try shell("timeout -s \(signal) 0.3 \(line); echo $?")
    #expect(result.output.hasSuffix("124\n") || result.output.hasSuffix("0\n"), "\(result)")
    if result.output.hasSuffix("124\n") { #expect(!fileExists(target), "\(words)") }
    #expect(try mustRun("md5sum", source) == sum)
  }

  /// A file may not grow beyond a limit, as on a full host.
  @Test(arguments: ways)
  func aHostWithoutRoom(_ words: [String]) throws {
    let directory = try TemporaryDirectory(in: "/dev/shm")
    let source = try Self.source(directory, megabytes: 8)
    let target = directory.file("target")
    let qublk = try #require(Tools.qublkPath)
    let line = ([qublk, "convert", "-f", "raw"] + words + [source, target])
      .map { "'\($0)'" }.joined(separator: " ")
    for blocks in [1, 500, 4000, 7000] {
      let result = try shell("trap '' XFSZ; ulimit -f \(blocks); \(line)")
      #expect(result.status == 1, "\(words): \(result)")
      let text = result.output + result.errors
      #expect(
        text.contains("No space left") || text.contains("File too large"),
        "\(words), \(blocks) KiB: \(text)")
      #expect(!fileExists(target), "\(words), \(blocks) KiB")
    }
  }
}
