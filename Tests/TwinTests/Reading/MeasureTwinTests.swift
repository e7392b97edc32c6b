import TestTools
import Testing

/// `measure` with each of its options, beside qemu-img.
@Suite(.enabled(if: Tools.hasQEMU, Tools.reason))
struct MeasureTwinTests {
  @Test func copiesOfImagesAreTheSame() throws {
    for sample in Sample.tried {
      try Twin.read(["measure", "-O", "qcow2"] + sample.named, sample)
    }
    for sample in Sample.some(8, 31) {
      try Twin.read(["measure", "--output=json", "-O", "raw"] + sample.named, sample)
      let other = ["--output=json", "-O", "qcow2", "-o", "cluster_size=4k,refcount_bits=64"]
      try Twin.read(["measure"] + other + sample.named, sample)
      let old = ["--target-format=qcow2", "-o", "compat=0.10"]
      try Twin.read(["measure"] + old + sample.named, sample)
    }
  }

  @Test func snapshotsAreTheSame() throws {
    for sample in Sample.some(3, 32, { $0.snapshots > 0 }) {
      for name in ["snap0", "1", "snapshot.name=snap0", "snapshot.id=1", "nosuch"] {
        try Twin.read(["measure", "-O", "qcow2", "-l", name] + sample.named, sample)
      }
    }
  }

  @Test func sizesAreTheSame() throws {
    var random = SeededGenerator(seed: TwinCount.seed)
    let sample = try #require(Sample.all.first)
    for size in ["0", "1", "1000", "64k", "1G", "3T", "7E"] {
      try Twin.read(["measure", "--size", size], sample)
      try Twin.read(["measure", "-O", "qcow2", "-s", size], sample)
    }
    for _ in 0..<25 {
      let bits = 9 + random.below(13)
      var options = ["cluster_size=\(1 << bits)", "refcount_bits=\(1 << random.below(7))"]
      if bits >= 14, random.chance(50) { options.append("extended_l2=on") }
      if random.chance(30) { options.append("preallocation=falloc") }
      let size = random.next() >> UInt64(20 + random.below(30))
      let words = ["-O", "qcow2", "-o", options.joined(separator: ","), "--size=\(size)"]
      try Twin.read(["measure"] + words, sample)
    }
  }

  @Test func optionsOfTheCopyCount() throws {
    let sample = try #require(Sample.some(1, 33, { $0.cipher == .plain }).first)
    let secret = ["--object", "secret,id=s,data=x"]
    for options in [
      "backing_file=b,backing_fmt=raw", "preallocation=full", "preallocation=metadata",
      "data_file=x", "compat=0.10", "size=3G", "encrypt.format=luks,encrypt.key-secret=s",
      "encrypt.format=aes,encrypt.key-secret=s", "compression_type=zstd",
      "encrypt.format=luks,encrypt.key-secret=s,encrypt.cipher-alg=aes-128",
    ] {
      let words = ["measure", "-O", "qcow2", "-o", options]
      try Twin.read(words + secret + [Sample.name], sample)
      try Twin.read(words + secret + ["--size", "1G"], sample)
    }
    try Twin.read(["measure", "-O", "raw", "-o", "preallocation=full", Sample.name], sample)
  }

  @Test func whatIsWrongEndsTheSame() throws {
    let sample = try #require(Sample.all.first)
    for words in [
      ["nosuch"], [], ["--size", "1G", Sample.name], ["--size", "x"], ["--size", "-1"],
      ["-O", "nosuch", "--size", "1"], ["-O", "qcow2", "-o", "nosuch=1", "--size", "1G"],
      ["-O", "raw", "-o", "nosuch=1", "--size", "1G"], ["--output=yaml", Sample.name], ["-h"],
      ["-O", "qcow2", "-o", "compat=0.10,refcount_bits=1", "--size", "1G"], ["a", "b"],
      ["-O", "qcow2", "-o", "cluster_size=512", "--size", "1T"],
    ] {
      let likeness = Likeness(comparesOutput: false)
      try Twin.read(["measure"] + words, sample, likeness)
    }
  }
}
