import TestTools
import Testing

/// `check` with each of its options, beside qemu-img.
@Suite(.enabled(if: Tools.hasQEMU, Tools.reason))
struct CheckTwinTests {
  @Test func soundImagesAreTheSame() throws {
    for sample in Sample.tried {
      try Twin.read(["check"] + sample.named, sample)
    }
    for sample in Sample.some(8, 11) {
      let likeness = Likeness(ignoring: sample.isEncrypted ? ["filename"] : [])
      try Twin.read(["check", "--output=json"] + sample.named, sample, likeness)
    }
  }

  @Test func optionsAreTakenInAllForms() throws {
    let sample = try #require(Sample.some(1, 12, { $0.cipher == .plain }).first)
    for words in [
      ["-f", "qcow2"], ["--format=qcow2"], ["-q"], ["--quiet"], ["-U"], ["--force-share"],
      ["-T", "none"], ["--cache", "writeback"], ["-q", "--output=json"], ["--output", "human"],
    ] {
      try Twin.read(["check"] + words + [Sample.name], sample)
    }
    try Twin.read(["check", "--image-opts", sample.options], sample)
  }

  /// Gives one free cluster a refcount, and takes the refcount of the last cluster in use.
  private func damaged(_ sample: Sample, leaks: Bool) throws -> Sample {
    let copy = try sample.copy()
    let path = copy.directory.file(Sample.name)
    let bytes = try contents(path)
    func number(_ offset: Int) -> Int {
      bytes[offset..<offset + 8].reduce(0) { $0 << 8 | Int($1) }
    }
    // Of 16 bits: the shapes below have no others.
    let block = number(number(48))
    let clusters = bytes.count >> sample.shape.clusterBits
    var (free, used) = (clusters, 0)
    for cluster in (0..<clusters).reversed() {
      if bytes[block + 2 * cluster + 1] == 0 { free = cluster }
      if bytes[block + 2 * cluster + 1] == 1, used == 0 { used = cluster }
    }
    if leaks { try patch(path, at: block + 2 * free, [0, 1]) }
    if !leaks { try patch(path, at: block + 2 * used, [0, 0]) }
    return copy
  }

  @Test func damageIsFoundAndRepaired() throws {
    let plain = Sample.some(5, 13) {
      $0.refcountBits == 16 && $0.cipher == .plain && $0.snapshots == 0 && !$0.isCompressed
        && (16...18).contains($0.clusterBits) && $0.size <= 16 << 20
    }
    let quiet = Likeness(comparesOutput: false)
    for sample in plain {
      for leaks in [true, false] {
        let broken = try damaged(sample, leaks: leaks)
        try Twin.read(["check", Sample.name], broken)
        try Twin.read(["check", "--output=json", Sample.name], broken)
        var likeness = quiet
        likeness.checksImages = leaks
        // With errors beside the leaks, qemu-img ends with 1 or 2, by what it met first.
        if leaks { try Twin.change(["check", "-r", "leaks", Sample.name], broken, likeness) }
        try Twin.change(["check", "--repair=all", Sample.name], broken, quiet)
        try Twin.change(["check", "-q", "-r", "all", "-f", "qcow2", Sample.name], broken)
      }
    }
  }

  @Test func whatCannotBeCheckedEndsTheSame() throws {
    let sample = try #require(Sample.some(1, 14, { $0.backing == .raw }).first)
    for words in [
      ["base.raw"], ["-f", "raw", "base.raw"], ["-f", "qcow2", "base.raw"], ["nosuch"], [],
      ["-f", "nosuch", Sample.name], ["-r", "some", Sample.name], ["-T", "nosuch", Sample.name],
      ["-r", "all", "-U", Sample.name], ["--output=yaml", Sample.name], ["-h"],
      ["--image-opts", "-f", "qcow2", sample.options], [Sample.name, "another"],
    ] {
      let likeness = Likeness(comparesOutput: false)
      try Twin.read(["check"] + words, sample, likeness)
    }
  }
}
