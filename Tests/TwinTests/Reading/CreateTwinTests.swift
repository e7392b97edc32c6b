import TestTools
import Testing

/// `create` with each of its options, beside qemu-img.
@Suite(.enabled(if: Tools.hasQEMU, Tools.reason))
struct CreateTwinTests {
  /// Both make another image beside the sample, and describe it in the same words.
  private func make(
    _ words: [String], _ sample: Sample, at place: SourceLocation = #_sourceLocation
  ) throws {
    let twin = try Twin.change(
      ["create"] + words, sample, Likeness(images: ["new.qcow2"]), at: place)
    guard twin.theirs.succeeded else { return }
    let described = Likeness(ignoring: ["actual-size", "uuid", "iters", "master-key-iters"])
    try twin.next(["info", "--output=json", "new.qcow2"], described, at: place)
  }

  private func sample() throws -> Sample {
    try #require(Sample.some(1, 41, { $0.backing == .raw && $0.cipher == .plain }).first)
  }

  @Test func optionsOfTheFormatAreTheSame() throws {
    let sample = try sample()
    for options in [
      "cluster_size=512", "cluster_size=2M", "compat=0.10", "compat=v3,lazy_refcounts=on",
      "refcount_bits=1", "refcount_bits=64", "extended_l2=on", "compression_type=zstd",
      "preallocation=metadata", "preallocation=falloc", "preallocation=full", "nocow=on",
      "preallocation=off", "data_file=new.data", "data_file=new.data,data_file_raw=on",
      "nocow=off,lazy_refcounts=off", "extent_size_hint=1M", "nocow=on,extent_size_hint=64k",
    ] {
      try make(["-f", "qcow2", "-o", options, "new.qcow2", "3M"], sample)
    }
  }

  @Test func wordsAreTakenInAllForms() throws {
    let sample = try sample()
    for words in [
      ["-f", "qcow2", "new.qcow2", "1G"], ["-fqcow2", "-q", "new.qcow2", "1G"],
      ["--format=qcow2", "--quiet", "new.qcow2", "1G"], ["-f", "qcow2", "new.qcow2", "1000"],
      ["-f", "qcow2", "--options", "size=5M", "new.qcow2"], ["-f", "qcow2", "new.qcow2", "1.5G"],
      ["-f", "qcow2", "-b", "base.raw", "-F", "raw", "new.qcow2"],
      ["-f", "qcow2", "--backing=base.raw", "-B", "raw", "new.qcow2"],
      ["-f", "qcow2", "--backing", "base.raw", "--backing-format=raw", "new.qcow2", "9M"],
      ["-f", "qcow2", "-b", Sample.name, "-B", "qcow2", "new.qcow2"],
      ["-f", "qcow2", "-o", "backing_file=base.raw,backing_fmt=raw", "new.qcow2"],
      ["-f", "qcow2", "new.qcow2", "0"], ["-f", "qcow2", "new.qcow2", "64T"],
    ] {
      try make(words, sample)
    }
  }

  @Test func aBackingFileThatIsNotThere() throws {
    let sample = try sample()
    var likeness = Likeness(checksImages: false)
    likeness.comparesOutput = true
    for words in [
      ["-u", "-b", "nosuch", "-F", "raw", "new.qcow2", "1G"],
      ["--backing-unsafe", "-b", "nosuch", "-F", "raw", "new.qcow2", "1G"],
      ["-b", "nosuch", "-F", "raw", "new.qcow2", "1G"], ["-b", "base.raw", "new.qcow2"],
      ["-u", "-b", "nosuch", "-F", "raw", "new.qcow2"],
    ] {
      try Twin.change(["create", "-f", "qcow2"] + words, sample, likeness)
    }
  }

  @Test func rawImagesAreTheSame() throws {
    let sample = try sample()
    let likeness = Likeness(checksImages: false)
    for words in [
      ["new.raw", "1G"], ["new.raw", "1000"], ["-o", "preallocation=full", "new.raw", "1M"],
      ["-o", "preallocation=falloc", "new.raw", "1M"], ["-o", "size=2M", "new.raw"],
      ["-q", "new.raw", "1M"], ["-o", "nocow=on,preallocation=off", "new.raw", "1M"],
      ["-o", "extent_size_hint=1M", "new.raw", "1M"], ["base.raw", "1M"],
    ] {
      let twin = try Twin.change(["create", "-f", "raw"] + words, sample, likeness)
      let name = words.contains("base.raw") ? "base.raw" : "new.raw"
      // QEMU writes the first block, to find out what transfers must keep to.
      let described = Likeness(ignoring: ["actual-size"], checksImages: false)
      try twin.next(["info", "--output=json", "-f", "raw", name], described)
    }
  }

  @Test func whatIsWrongEndsTheSame() throws {
    let sample = try sample()
    let likeness = Likeness(comparesOutput: false, checksImages: false)
    for words in [
      ["-f", "qcow2", "new.qcow2"], ["-f", "qcow2"], ["-f", "nosuch", "new.qcow2", "1G"],
      ["-f", "qcow2", "new.qcow2", "7E"], ["-f", "qcow2", "new.qcow2", "-1G"],
      ["-f", "qcow2", "new.qcow2", "10GB"], ["-f", "qcow2", "new.qcow2", "1G", "2G"],
      ["-f", "raw", "-b", "base.raw", "new.qcow2", "1G"], ["-f", "qcow2", "", "1G"],
      ["-f", "raw", "-o", "cluster_size=64k", "new.qcow2", "1G"],
      ["-f", "qcow2", "-o", "nosuch=1", "new.qcow2", "1G"],
      ["-f", "qcow2", "-o", "cluster_size=100", "new.qcow2", "1G"],
      ["-f", "qcow2", "-o", "help"], ["-f", "raw", "-o", "help"], ["-h"],
      ["-f", "qcow2", "-o", "?", "new.qcow2", "1G"], ["-f", "qcow2", "-o", "", "new.qcow2", "1G"],
      ["-f", "qcow2", "nosuch/new.qcow2", "1G"],
    ] {
      try Twin.change(["create"] + words, sample, likeness)
    }
  }
}
