import Glibc
import TestTools
import Testing

/// Every image command on every kind of malformed image: it ends, by itself and soon, and says what is
/// wrong, and what only reads changes nothing.
@Suite(.enabled(if: hasQEMU, "needs qemu-img and qemu-io")) struct MalformedImageTests {
  /// How long a command may take, in seconds, on a machine that has much else to do.
  private static let limit = 60.0

  /// A directory with one malformed image and the sound images that commands use beside it.
  private struct Place {
    let directory: TemporaryDirectory

    init() throws {
      directory = try TemporaryDirectory(in: "/dev/shm")
      try run(
        """
        qemu-img create -q -f qcow2 -o cluster_size=4k good.0 8M
        qemu-io -c 'write -P 9 0 50k' good.0
        qemu-img create -q -f raw good.raw 8M
        qemu-img create -q -f qcow2 -o cluster_size=4k over.0 8M
        qemu-io -c 'write -P 9 0 50k' -c 'write -P 8 4M 50k' over.0
        cp over.0 delta.0; qemu-img rebase -u -b bad -F qcow2 over.0; head -c 9000 /dev/urandom > small
        """)
    }

    func run(_ script: String) throws {
      try mustRun("bash", "-ec", "cd \(directory.path)\n{ \(script)\n} > /dev/null")
    }

    /// The sound images as they were made, and no target.
    func prepare(_ bytes: [UInt8]) throws {
      for name in ["good", "over", "delta"] {
        try write(contents(directory.file(name + ".0")), to: directory.file(name))
      }
      unlink(directory.file("target"))
      try write(bytes, to: directory.file("bad"))
    }

    /// The image; none of the bytes of one that has become very long, by an entry that leads far away.
    func image() throws -> [UInt8] {
      var status = stat()
      let path = directory.file("bad")
      guard stat(path, &status) == 0, status.st_size < 1 << 26 else { return [] }
      return try contents(path)
    }

    func qublk(_ words: [String]) throws -> Outcome {
      let line = "cd \"$1\" && shift && exec \"$@\""
      return try Subprocess("sh", ["-c", line, "sh", directory.path, qublkPath()] + words)
        .finish(within: MalformedImageTests.limit)
    }
  }

  private struct Pair {
    let image: BrokenImage
    let command: ImageCommand
  }

  /// A share of all pairs: of about 11,000 a 27th where QUBLK_SHARE asks for a third.
  private static var pairs: [Pair] {
    let all = brokenImages.flatMap { image in
      ImageCommand.all.map { Pair(image: image, command: $0) }
    }
    let parts = max(1, 13 * testSetting("QUBLK_SHARE", default: 1) - 12)
    let chosen = testSetting("QUBLK_SEED", default: 1) % parts
    return all.indices.filter { $0 % parts == chosen }.map { all[$0] }
  }

  @Test func everyCommandEndsAndSaysWhatIsWrong() throws {
    let place = try Place()
    var sound: [BrokenImage.Base: [UInt8]] = [:]
    for base in BrokenImage.Base.allCases {
      try place.run("shopt -s expand_aliases; set +e\n" + base.script)
      sound[base] = try contents(place.directory.file(base.rawValue))
    }
    var (runs, failed) = (0, 0)
    for pair in Self.pairs {
      var editor = ImageEditor(try #require(sound[pair.image.image]))
      pair.image.edit(&editor)
      try place.prepare(editor.bytes)
      let outcome = try place.qublk(pair.command.words)
      let text = "\(pair.image): \(pair.command.words): \(outcome.status) \(outcome.errors)"
      runs += 1
      if outcome.status != 0 { failed += 1 }
      #expect(outcome.status < 128, "\(text)")
      #expect(Self.says(pair.command, outcome), "\(text)")
      let after = try place.image()
      if after == editor.bytes { continue }
      #expect(pair.command.access != .reads, "changed: \(text)")
      if outcome.status != 0, pair.command.access == .changes {
        let isAsItWas = try Self.isNoWorse(after, than: editor.bytes, place)
        let isAsAsked = try Self.isApplied(pair.command, after, editor.bytes, place)
        #expect(isAsItWas || isAsAsked, "worse: \(text)")
      }
    }
    print("malformed images: \(runs) commands, \(failed) refused")
    #expect(failed > runs / 4)
  }

  /// Whether a command that failed has said so in qublk's form; `check` and `compare` tell by their status,
  /// and `io` as qemu-io does.
  private static func says(_ command: ImageCommand, _ outcome: Outcome) -> Bool {
    if outcome.status == 0 { return true }
    if ["check", "compare", "io"].contains(command.words[0]) {
      // 63, as qemu-img has it: the format has nothing to check.
      let isExpected = outcome.status <= 4 || command.words[0] == "check" && outcome.status == 63
      return isExpected && !(outcome.output + outcome.errors).isEmpty
    }
    return outcome.status == 1
      && outcome.errors.split(separator: "\n").contains { $0.hasPrefix("qublk: ") }
  }

  /// Whether a command that failed has left what can be read, in an image that opens as before.
  ///
  /// Refcounts that are nonsense may have become other nonsense.
  private static func isNoWorse(
    _ after: [UInt8], than before: [UInt8], _ place: Place
  ) throws -> Bool {
    let (new, old) = (try reading(after, place), try reading(before, place))
    return new == old
  }

  /// Whether what was asked is in force, and the disk reads so: what failed is to give back what it had before.
  private static func isApplied(
    _ command: ImageCommand, _ after: [UInt8], _ before: [UInt8], _ place: Place
  ) throws -> Bool {
    let new = try reading(after, place)
    switch command.words.prefix(2) {
    case ["snapshot", "-a"]: return new == (try reading(before, place, ["-l", command.words[2]]))
    case ["resize", "--shrink"]: return new == (try reading(before, place, first: "1M"))
    default: return false
    }
  }

  /// What the disk reads as, whatever cannot be read left out; with more words, what a snapshot reads as; as
  /// much of it as `first` says to `head`, or all.
  private static func reading(
    _ bytes: [UInt8], _ place: Place, _ more: [String] = [], first: String? = nil
  ) throws -> String {
    try place.prepare(bytes)
    let copy = try place.qublk(
      ["convert", "--salvage", "-f", "qcow2", "-O", "raw"] + more + ["bad", "target"])
    if copy.status != 0 { return "status \(copy.status)" }
    let head = first.map { "head -c \($0)" } ?? "cat"
    return try mustRun("bash", "-c", "\(head) \(place.directory.file("target")) | cksum")
  }
}
