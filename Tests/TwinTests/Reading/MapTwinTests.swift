import TestTools
import Testing

/// `map` with each of its options, beside qemu-img.
@Suite(.enabled(if: Tools.hasQEMU, Tools.reason))
struct MapTwinTests {
  @Test func rangesAreTheSame() throws {
    for sample in Sample.tried {
      try Twin.read(["map"] + sample.named, sample)
      try Twin.read(["map", "--output=json"] + sample.named, sample)
    }
  }

  @Test func partsAreTheSame() throws {
    for sample in Sample.some(10, 21) {
      var random = SeededGenerator(seed: sample.seed)
      let size = Int(min(sample.shape.size, 8 << 20))
      for _ in 0..<2 {
        let start = random.below(size) / 512 * 512
        let length = random.below(size)
        let part = ["-s", "\(start)", "--max-length=\(length)"]
        try Twin.read(["map", "--output=json"] + part + sample.named, sample)
      }
      try Twin.read(["map", "--start-offset", "1M", "-l", "64k"] + sample.named, sample)
      try Twin.read(["map", "-s", "9E", "-l", "1"] + sample.named, sample)
      try Twin.read(["map", "--output=json", "-s", "4E"] + sample.named, sample)
    }
  }

  @Test func optionsAreTakenInAllForms() throws {
    let sample = try #require(Sample.some(1, 22, { $0.cipher == .plain }).first)
    for words in [
      ["-f", "qcow2", Sample.name], ["--format=qcow2", Sample.name], ["-U", Sample.name],
      ["--image-opts", sample.options], ["-f", "raw", Sample.name],
      ["--output=json", "-f", "raw", Sample.name], ["-l", "0", Sample.name],
    ] {
      try Twin.read(["map"] + words, sample)
    }
    for sample in Sample.some(2, 23, { $0.backing == .raw || $0.backing == .chain }) {
      try Twin.read(["map", "base.raw"], sample)
      try Twin.read(["map", "--output=json", "./base.raw"], sample)
    }
  }

  @Test func whatIsWrongEndsTheSame() throws {
    let sample = try #require(Sample.all.first)
    for words in [
      ["nosuch"], [], ["-s", "x", Sample.name], ["-l", "-1", Sample.name],
      ["-s", "1Q", Sample.name],
      ["-f", "nosuch", Sample.name], ["--output=yaml", Sample.name], [Sample.name, "b"], ["-h"],
    ] {
      let likeness = Likeness(comparesOutput: false)
      try Twin.read(["map"] + words, sample, likeness)
    }
  }
}
