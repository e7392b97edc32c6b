import TestTools
import Testing

/// `convert` beside qemu-img's, on images over the whole format.
@Suite(.enabled(if: Tools.hasQEMU, Tools.reason))
struct ConvertTests {
  @Test(arguments: Sample.tried)
  func everySampleBecomesARawFile(_ sample: Sample) throws {
    try Conversion.run(["-O", "raw"] + sample.named, sample, to: "raw")
  }

  @Test(arguments: Sample.tried)
  func everySampleBecomesAnImage(_ sample: Sample) throws {
    try Conversion.run(["-O", "qcow2"] + sample.named, sample, to: "qcow2")
  }

  @Test(arguments: Sample.some(10, 1), ["zlib", "zstd"])
  func samplesAreCompressed(_ sample: Sample, _ type: String) throws {
    try Conversion.run(
      ["-c", "-O", "qcow2", "-o", "compression_type=\(type)"] + sample.named, sample, to: "qcow2")
  }

  @Test(arguments: [
    "cluster_size=512", "cluster_size=4k,compat=0.10", "cluster_size=2M", "extended_l2=on",
    "refcount_bits=64,lazy_refcounts=on", "preallocation=metadata", "preallocation=falloc",
    "preallocation=full", "data_file=target.data", "data_file=target.data,data_file_raw=on",
    "extended_l2=on,preallocation=metadata,cluster_size=16k",
  ])
  func targetsOfAllKinds(_ options: String) throws {
    for sample in Sample.some(2, 2, { $0.size <= 16 << 20 }) {
      try Conversion.run(
        ["-O", "qcow2", "-o", options] + sample.named, sample, to: "qcow2")
    }
  }

  @Test(arguments: [
    ["-S", "0"], ["-S", "64k"], ["-S", "512"], ["-m", "1"], ["-m", "16", "-W"], ["-T", "none"],
    ["-t", "none"], ["-t", "writethrough"], ["-r", "1G"], ["-U"], ["-q"], ["--salvage"],
    ["-o", "preallocation=full"], ["-o", "preallocation=falloc"],
  ])
  func options(_ words: [String]) throws {
    for sample in Sample.some(2, 3, { $0.size <= 16 << 20 }) {
      let options = words.contains { $0.hasPrefix("preallocation") } ? [] : ["-O", "qcow2"]
      try Conversion.run(
        words + options + sample.named, sample, to: options.isEmpty ? "raw" : "qcow2")
    }
  }

  @Test func internalSnapshots() throws {
    for sample in Sample.some(3, 4, { $0.snapshots > 0 && $0.cipher == .plain }) {
      for selector in ["1", "snapshot.id=1", "nosuch", "snapshot.id=1,snapshot.name=nosuch"] {
        try Conversion.run(
          ["-l", selector, "-O", "qcow2"] + sample.named, sample, to: "qcow2")
      }
    }
  }

  @Test func onlyWhatTheImageItselfHasIsCopiedOntoABackingFile() throws {
    let samples = Sample.some(4, 5) { $0.backing == .qcow2 && $0.cipher == .plain }
    for sample in samples {
      let text = try Tools.mustQEMU("qemu-img", ["info", Sample.name], in: sample.path)
      let line = try #require(text.split(separator: "\n").first { $0.hasPrefix("backing file: ") })
      let name = String(line.dropFirst("backing file: ".count).prefix { $0 != " " })
      for options in [[], ["-c"], ["-S", "0"], ["-o", "cluster_size=4k"]] {
        try Conversion.run(
          options + ["-O", "qcow2", "-b", name, "-F", "qcow2"] + sample.named, sample,
          to: "qcow2")
      }
      try Conversion.run(["-O", "qcow2", "-b", name] + sample.named, sample, to: "qcow2")
      try Conversion.run(["-b", name, "-F", "qcow2"] + sample.named, sample, to: "raw")
    }
  }

  @Test func sourcesBehindEachOther() throws {
    let small = Sample.some(3, 6) { $0.size <= 16 << 20 && $0.cipher == .plain }
    for sample in small {
      try mustRun("sh", "-c", "head -c 123457 /dev/urandom > \(sample.path)/odd")
      try Conversion.run(
        ["-O", "qcow2", Sample.name, "odd", Sample.name], sample, to: "qcow2")
      try Conversion.run(["-c", "-O", "qcow2", "odd", "odd"], sample, to: "qcow2")
      try Conversion.run(["odd", Sample.name], sample, to: "raw")
      try Conversion.run(["-C", "odd"], sample, to: "raw")
    }
  }

  @Test(arguments: [
    ["-m", "0"], ["-m", "17"], ["-S", "100"], ["-S", "1G"], ["-C", "-c"], ["-C", "-S", "4k"],
    ["--target-is-zero"], ["-n"], ["-T", "foo"], ["-t", "foo"], ["-O", "foo"], ["-c"],
    ["--skip-broken-bitmaps"], ["--target-image-opts"], ["-l", "none"], ["-o", "foo=bar"],
    ["-f", "foo"], ["--image-opts"], ["--foo"], ["-O", "qcow2", "-o", "cluster_size=3"],
    ["-O", "qcow2", "-b", "nosuch", "-F", "raw"], ["nosuch"], [],
  ])
  func wrongWordsLeaveNothing(_ words: [String]) throws {
    let sample = Sample.all[0]
    let all = words.isEmpty ? ["convert"] : ["convert"] + words + [Sample.name, "target"]
    let twin = try Conversion.run(all, sample, target: "raw")
    #expect(twin.ours.status == 1)
    #expect(!fileExists("\(twin.ourSample.path)/target"))
  }

  @Test func anImageThatIsThereIsOverwritten() throws {
    let sample = try #require(
      Sample.some(1, 7, { $0.size == 4 << 20 && $0.cipher == .plain }).first)
    for format in ["raw", "qcow2"] {
      let files = try sample.copy()
      try Tools.mustQEMU(
        "qemu-img", ["create", "-q", "-f", format, "target", "5M"], in: files.path)
      try Tools.mustQEMU(
        "qemu-io", ["-f", format, "-c", "write -P 7 0 5M", "target"], in: files.path)
      try Conversion.run(["-n", "-O", format, Sample.name], files, to: format)
      try Conversion.run(
        [
          "convert", "-n", "--target-image-opts", Sample.name,
          "driver=\(format),file.filename=target",
        ], files, target: format)
    }
  }

  @Test func theTargetIsNeverAFileOfTheSource() throws {
    let sample = try #require(Sample.some(1, 8, { $0.backing == .qcow2 }).first).copy()
    let before = try mustRun("sh", "-c", "cd \(sample.path) && md5sum *")
    try mustRun("ln", "\(sample.path)/\(Sample.name)", "\(sample.path)/hard")
    try mustRun("ln", "-s", Sample.name, "\(sample.path)/soft")
    let text = try Tools.mustQEMU(
      "qemu-img", ["info", "-U"] + sample.named, in: sample.path)
    let line = try #require(text.split(separator: "\n").first { $0.hasPrefix("backing file: ") })
    let backing = String(line.dropFirst("backing file: ".count).prefix { $0 != " " })
    for target in [Sample.name, "hard", "soft", backing] {
      for words in [["-O", "raw"], ["-O", "qcow2"], ["-n", "-O", "raw"]] {
        let result = try Tools.qublk(["convert"] + words + sample.named + [target], in: sample.path)
        #expect(result.status == 1 && result.errors.contains("file of the source"), "\(result)")
      }
    }
    try mustRun("rm", "\(sample.path)/hard", "\(sample.path)/soft")
    #expect(try mustRun("sh", "-c", "cd \(sample.path) && md5sum *") == before)
  }
}
