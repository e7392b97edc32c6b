import Glibc
import TestTools
import Testing

/// Commands that change an image, killed at random moments (SIGKILL).
///
/// With QUBLK_SHARE=1 each runs about eight times, so about 200 kills in all.
@Suite(.enabled(if: Tools.hasQEMU, Tools.reason))
struct KillTests {
  /// A directory with the image of a case, on a file system whose syncs take time.
  private final class Place {
    let directory: TemporaryDirectory

    init() throws { directory = try TemporaryDirectory(in: "/var/tmp") }

    /// Runs a script that must succeed, with QEMU's newest tools, and returns its output.
    @discardableResult
    func run(_ script: String) throws -> String {
      let path = "export PATH=\(Tools.qemuDirectory ?? ""):$PATH; cd \(directory.path) || exit 9"
      let outcome = try Subprocess("bash", ["-c", "\(path)\nset -e\n\(script)"]).finish()
      guard outcome.succeeded else { throw CommandFailure(words: [script], result: outcome) }
      return outcome.output
    }

    func copy(of other: Place) throws {
      try mustRun(
        "sh", "-c", "rm -f \(directory.path)/*; cp -r \(other.directory.path)/. \(directory.path)")
    }
  }

  /// What kills have left.
  private struct Counts {
    var (killed, old, new, between) = (0, 0, 0, 0)
  }

  @Test(arguments: KillCase.all)
  func killedAtAnyMoment(_ kind: KillCase) throws {
    let rounds = max(2, 8 / testSetting("QUBLK_SHARE", default: 1))
    var random = SeededGenerator(seed: testSeed("kill") &+ UInt64(kind.description.utf8.count))
    let (original, whole, place) = (try Place(), try Place(), try Place())
    try original.run("{ \(kind.make)\n} > /dev/null")
    let old = try original.run(kind.probe)
    try whole.copy(of: original)
    var begin = now()
    _ = try Tools.qublk(["--version"], in: whole.directory.path)
    // Most of what a program needs to start: kills before that try nothing.
    let start = Int((now() - begin) * 700_000)
    begin = now()
    let outcome = try Tools.qublk(kind.words, in: whole.directory.path)
    let microseconds = max(Int((now() - begin) * 1_100_000), start + 1)
    #expect(outcome.succeeded, "\(outcome)")
    let new = try whole.run(kind.probe)
    var counts = Counts()
    for round in 0..<rounds {
      try place.copy(of: original)
      let moment = start + random.below(microseconds - start)
      let text = "\(kind), round \(round), killed after \(moment) µs"
      let path = place.directory.path
      if try Killed.run(kind.words, in: path, after: moment, text) { counts.killed += 1 }
      try Self.settle(kind, place, original, text)
      let found = try place.run(kind.probe)
      if found == old {
        counts.old += 1
      } else if found == new {
        counts.new += 1
      } else {
        counts.between += 1
        #expect(kind.leaves == .resumable, "\(text): \(found), not \(old) nor \(new)")
      }
      if found == new { continue }
      try place.run("rm -f delta.part; [ '\(kind.words[0])' != backup ] || rm -f delta")
      let again = try Tools.qublk(kind.words, in: place.directory.path)
      #expect(again.succeeded, "\(text), again: \(again)")
      #expect(try place.run(kind.probe) == new, "\(text), again")
    }
    print(
      "kill: \(kind): \(counts.killed) of \(rounds) killed within \(microseconds) µs: \(counts.old) old, "
        + "\(counts.new) new, \(counts.between) between")
  }

  /// Has the image opened for writing, as its next user does, and looks at what is there.
  private static func settle(
    _ kind: KillCase, _ place: Place, _ original: Place, _ text: String
  ) throws {
    let named = kind.named.split(separator: " ").map(String.init)
    let opened = try Tools.qublk(["io", "-c", "flush"] + named, in: place.directory.path)
    #expect(opened.succeeded, "\(text): \(opened)")
    // Version 2 has no mark of doubt: see decision 0022.
    let isOld = kind.description.contains("version 2")
    if isOld { try place.run("qemu-img check -q -r all image || [ $? = 3 ]") }
    if kind.words[0] != "check" {
      let check = try place.run("s=0; qemu-img check \(kind.named) 2>&1 || s=$?; echo status $s")
      #expect(check.hasSuffix("status 0\n") || check.hasSuffix("status 3\n"), "\(text): \(check)")
    }
    if !kind.steady.isEmpty {
      #expect(try place.run(kind.steady) == original.run(kind.steady), "\(text): the disk")
    }
  }
}
