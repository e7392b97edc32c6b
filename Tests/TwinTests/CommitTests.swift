import Glibc
import JSON
import TestTools
import Testing

/// Overlays are committed into images of every shape.
@Suite(.enabled(if: Tools.hasQEMU, Tools.reason))
struct CommitTests {
  /// What may differ: nothing that a guest reads.
  private static func likeness(_ overlay: Overlay) -> Likeness {
    var likeness = Likeness()
    // The secret of the base is not the overlay's.
    likeness.images = overlay.sample.isEncrypted ? [] : overlay.images
    return likeness
  }

  private static func overlays(
    _ count: Int, _ salt: UInt64, height: Int, isPlain: Bool = false
  ) throws -> [Overlay] {
    var random = SeededGenerator(seed: TwinCount.seed &+ salt)
    let samples = Sample.some(count, salt) {
      $0.size <= 8 << 20 && $0.dataFile != .raw && !(isPlain && $0.cipher != .plain)
    }
    return try samples.map { sample in
      try Overlay.make(over: try sample.copy(), height: height, &random)
    }
  }

  @Test func anOverlayGoesDownIntoABaseOfAnyShape() throws {
    for overlay in try Self.overlays(14, 1, height: 1) {
      let words = ["commit"] + (overlay.sample.seed % 3 == 0 ? ["-d"] : []) + overlay.named
      let twin = try Twin.change(words, overlay.sample, Self.likeness(overlay))
      try overlay.compare(twin)
    }
  }

  @Test func severalLayersGoDownIntoAnyBaseOfTheChain() throws {
    // qemu-img finds no name in a chain of which options say something.
    for overlay in try Self.overlays(6, 2, height: 3, isPlain: true) {
      for base in [Sample.name, "over0.qcow2", "over1.qcow2"] {
        let twin = try Twin.change(
          ["commit", "-b", base] + overlay.named, overlay.sample, Self.likeness(overlay))
        try overlay.compare(twin)
      }
      let twin = try Twin.change(
        ["commit", "-q"] + overlay.named, overlay.sample, Self.likeness(overlay))
      try overlay.compare(twin)
    }
  }

  @Test func anImageGoesDownIntoRawAndChainedBases() throws {
    for sample in Sample.some(8, 3, { $0.backing != .none && $0.size <= 1 << 30 }) {
      var likeness = Likeness()
      if sample.shape.backing == .chain { likeness.images.append("middle.qcow2") }
      if sample.shape.backing == .qcow2 { likeness.images.append("base.qcow2") }
      if sample.isEncrypted { likeness.images = [Sample.name] }
      let twin = try Twin.change(["commit"] + sample.named, sample, likeness)
      guard sample.shape.backing == .raw else { continue }
      let paths = [twin.ourSample, twin.theirSample].map { $0.directory.file("base.raw") }
      try mustRun(["cmp"] + paths)
    }
  }

  @Test func wrongWordsAreRefusedAlike() throws {
    let plain = try Sample.make(SampleShape(), seed: 7)
    let chained = try Sample.make(.with { $0.backing = .chain }, seed: 8)
    let likeness = Likeness(checksImages: false)
    for (words, sample, text) in [
      (["commit", Sample.name], plain, "Image does not have a backing file"),
      (["commit", "-b", "nosuch", Sample.name], chained, "Did not find 'nosuch'"),
      (["commit", "-b", Sample.name, Sample.name], chained, "Did not find 'image.qcow2'"),
      (["commit", "nosuch"], plain, "nosuch"),
      (["commit", "-f", "bla", Sample.name], chained, "Unknown driver 'bla'"),
      (["commit", "-t", "bla", Sample.name], chained, "Invalid cache option: bla"),
      (["commit", "-r", "bla", Sample.name], chained, "bla"),
      (["commit", Sample.name, "more"], chained, ""),
    ] {
      let twin = try Twin.read(words, sample, likeness)
      #expect(
        twin.ours.status == 1 && (text.isEmpty || twin.ours.errors.contains(text)),
        "\(twin.ours.errors)")
      #expect(text.isEmpty || twin.theirs.errors.contains(text), "\(twin.theirs.errors)")
    }
  }

  @Test func aBaseThatCannotBeWrittenIsNamed() throws {
    let sample = try Sample.make(.with { $0.backing = .qcow2 }, seed: 9)
    let before = try mustRun("cksum", sample.directory.file(Sample.name))
    let line = "cd \"$1\" && exec \"$2/qemu-io\" -f qcow2 base.qcow2"
    let user = try Subprocess(
      "sh", ["-c", line, "sh", sample.path, Tools.qemuDirectory ?? ""], joinsErrors: true)
    let isOpen = user.waitFor("qemu-io>")
    #expect(isOpen)
    let twin = try Twin.read(["commit", Sample.name], sample, Likeness(checksImages: false))
    _ = user.finish()
    #expect(twin.ours.status == 1)
    #expect(twin.ours.errors.contains("backing file \"base.qcow2\": image is in use"))
    unlink(sample.directory.file("base.qcow2"))
    let missing = try Twin.read(["commit", Sample.name], sample, Likeness(checksImages: false))
    #expect(missing.ours.status == 1 && missing.ours.errors.contains("base.qcow2"))
    #expect(try mustRun("cksum", sample.directory.file(Sample.name)) == before)
  }

  @Test func killedAtAnyMomentTheImageReadsTheSame() throws {
    let seed = TwinCount.seed
    var random = SeededGenerator(seed: seed)
    let original = try Sample.make(.with { $0.size = 32 << 20 }, seed: seed)
    let overlay = try Overlay.make(over: original, height: 1, &random)
    let info = try Tools.mustQEMU(
      "qemu-img", ["info", "--output=json", overlay.name], in: original.path)
    let size = Int(try #require(JSONParser.parse(info)?["virtual-size"]?.unsigned)) >> 10
    for _ in 0..<20 {
      let start = random.below(size - 1)
      let length = 1 + random.below(min(2000, size - start))
      let write = "write -P \(1 + random.below(250)) \(start)k \(length)k"
      try Tools.mustQEMU("qemu-io", ["-f", "qcow2", "-c", write, overlay.name], in: original.path)
    }
    try Overlay.large("new.qcow2", in: original)
    let expected = try original.contents(overlay.named)
    for words in [["commit"], ["rebase", "-b", "new.qcow2", "-B", "qcow2"], ["rebase", "-b", ""]] {
      let copy = try original.copy()
      var status: Int32 = 1
      for attempt in 0..<5 where status != 0 {
        let moment = random.below(200_000)
        let isKilled = try Killed.run(
          words + [overlay.name], in: copy.path, after: attempt < 4 ? moment : nil, "seed \(seed)")
        status = isKilled ? 128 + SIGKILL : 0
        #expect(try copy.contents(overlay.named) == expected, "seed \(seed): \(words)")
        for name in overlay.images {
          let check = try Tools.qemu("qemu-img", ["check", "-q", name], in: copy.path)
          // 3: leaks.
          #expect([0, 3].contains(check.status), "seed \(seed): \(words): \(check.errors)")
        }
      }
      #expect(status == 0)
    }
  }
}
