import TestTools
import Testing

/// `snapshot`: both programs list, take, apply and delete the same, on images of all shapes.
///
/// qemu-img applies no snapshot to an image with bitmaps; qublk sets all their bits (decision 0022).
@Suite(.enabled(if: Tools.hasQEMU, Tools.reason))
struct SnapshotTests {
  /// The dates of snapshots that both take one after the other differ.
  private static var likeness: Likeness { Likeness(normalized: withoutDates) }

  private static func withoutDates(_ text: String) -> String {
    text.split(separator: "\n", omittingEmptySubsequences: false).map { line in
      let words = line.split(separator: " ")
      guard
        let index = words.firstIndex(where: { $0.count == 10 && $0.dropFirst(4).hasPrefix("-") })
      else { return String(line) }
      return String(
        line.replacing(words[index], with: "DATE").replacing(words[index + 1], with: "TIME"))
    }.joined(separator: "\n")
  }

  private static func words(_ action: String..., on sample: Sample) -> [String] {
    ["snapshot"] + action + sample.named
  }

  @Test func everySampleIsListedAlike() throws {
    for sample in Sample.tried {
      try Twin.read(["snapshot", "-l"] + sample.named, sample)
      try Twin.read(["snapshot"] + sample.named, sample)
    }
  }

  @Test func takenAppliedAndDeletedAlike() throws {
    for sample in Sample.some(
      testSetting("QUBLK_TWIN_SNAPSHOTS", default: 14), 11,
      { $0.refcountBits >= 4 && !$0.hasBitmaps })
    {
      let likeness = Self.likeness
      // A backing file can be longer or shorter than the disk: what the guest sees is compared each time.
      var twin = try Twin.change(Self.words("-c", "new", on: sample), sample, likeness)
      if sample.shape.dataFile != .none {
        #expect(twin.ours.status == 1)
        continue
      }
      twin = try twin.next(Self.words("-l", on: sample), likeness)
      try twin.overwrite()
      twin = try twin.next(Self.words("-c", "new", on: sample), likeness)
      twin = try twin.next(Self.words("-a", "new", on: sample), likeness)
      twin = try twin.next(Self.words("-a", "2", on: sample), likeness)
      twin = try twin.next(Self.words("-l", on: sample), likeness)
      try twin.overwrite()
      twin = try twin.next(Self.words("-d", "new", on: sample), likeness)
      twin = try twin.next(Self.words("-l", on: sample), likeness)
      twin = try twin.next(Self.words("-d", "new", on: sample), likeness)
      twin = try twin.next(Self.words("-d", "new", on: sample), likeness)
      twin = try twin.next(Self.words("-a", "new", on: sample), likeness)
      // Only a name will do to delete one.
      twin = try twin.next(Self.words("-d", "1", on: sample), likeness)
      try twin.next(Self.words("-l", on: sample), likeness)
    }
  }

  /// What one program makes, the other uses: it applies, deletes and finds it sound.
  @Test func eachTakesWhatTheOtherMakes() throws {
    let samples = Sample.some(testSetting("QUBLK_TWIN_SNAPSHOTS", default: 14) / 2, 12) {
      $0.dataFile == .none && !$0.hasBitmaps && $0.refcountBits >= 4 && $0.size <= 16 << 20
    }
    for sample in samples {
      for isOurs in [true, false] {
        let copy = try sample.copy()
        func run(_ ours: Bool, _ words: [String]) throws {
          let result =
            ours
            ? try Tools.qublk(words, in: copy.path)
            : try Tools.qemu("qemu-img", words, in: copy.path)
          #expect(result.succeeded, "\(words) \(copy): \(result.output)\(result.errors)")
        }
        let before = try copy.contents()
        try run(isOurs, Self.words("-c", "x", on: copy))
        try copy.overwrite()
        let after = try copy.contents()
        #expect(before != after)
        try run(!isOurs, Self.words("-c", "y", on: copy))
        try run(!isOurs, Self.words("-a", "x", on: copy))
        #expect(try copy.contents() == before, "\(copy)")
        try run(isOurs, Self.words("-a", "y", on: copy))
        #expect(try copy.contents() == after, "\(copy)")
        try run(!isOurs, Self.words("-d", "x", on: copy))
        try run(isOurs, Self.words("-d", "y", on: copy))
        #expect(try copy.contents() == after, "\(copy)")
        try run(false, ["check"] + copy.named)
        try run(true, ["check", Sample.name])
      }
    }
  }

  @Test func refcountsTooSmallForASnapshotRefuseIt() throws {
    for bits in [1, 2] {
      let sample = try Sample.make(.with { $0.refcountBits = bits }, seed: 3)
      // After its failure, qemu-img leaves a leak.
      let likeness = Likeness(checksImages: false)
      var twin = try Twin.change(Self.words("-c", "0", on: sample), sample, likeness)
      for number in 1...2 {
        twin = try twin.next(Self.words("-c", "\(number)", on: sample), likeness)
      }
      #expect(twin.ours.status == 1)
      let check = try Tools.qemu("qemu-img", ["check"] + sample.named, in: twin.ourSample.path)
      #expect(check.status == 0, "\(check.output)")
    }
  }

  @Test func wrongWordsEndAlike() throws {
    let sample = try Sample.make(SampleShape(), seed: 5)
    for words in [
      ["-a", "nope"], ["-d", "nope"], ["-l", "-c", "x"], ["-c", "x", "-d", "y"],
      ["-c", "x", "-c", "y"], ["-U", "-c", "x"], ["-f", "raw", "-c", "x"],
      ["-f", "raw", "-a", "x"],
      ["-f", "raw", "-d", "x"], ["-f", "raw", "-l"], ["-q", "-l"], ["-U"], ["-f", "none", "-l"],
    ] {
      try Twin.read(["snapshot"] + words + [Sample.name], sample)
    }
    try Twin.read(["snapshot", "-l", "no such file"], sample)
    try Twin.read(["snapshot", "-l"], sample)
  }
}

extension Sample {
  /// Writes into some clusters of the disk, and discards others.
  fileprivate func overwrite() throws {
    let commands = ["write -P 0x77 0 96k", "write -P 0x78 700k 3k", "discard 300k 200k"]
    try Tools.mustQEMU(
      "qemu-io", object + commands.flatMap { ["-c", $0] } + ["--image-opts", options], in: path)
  }

  /// A checksum of what the guest sees.
  fileprivate func contents() throws -> String {
    try Tools.mustQEMU(
      "qemu-img", ["convert", "-O", "raw"] + object + ["--image-opts", options, "contents"],
      in: path)
    return try mustRun("sha256sum", "\(path)/contents")
  }
}

extension Twin {
  /// Overwrites parts of both disks.
  fileprivate func overwrite() throws {
    try ourSample.overwrite()
    try theirSample.overwrite()
  }
}
