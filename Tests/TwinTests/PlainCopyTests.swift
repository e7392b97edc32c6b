import TestTools
import Testing

/// `convert` where the host copies from file to file: the same bytes, whatever units begin with.
@Suite(.enabled(if: Tools.hasQEMU, Tools.reason))
struct PlainCopyTests {
  /// A raw file of units of 4 KiB: data from the first byte on, data behind zeros, zeros, holes.
  private func makeRaw(_ sample: Sample, _ seed: UInt64, units: Int) throws {
    var random = SeededGenerator(seed: seed)
    let kinds = (0..<units).flatMap { _ in
      Array(
        repeating: "dbzh".randomElement(using: &random) ?? "d",
        count: [1, 3, 17, 40][random.below(4)])
    }
    let script = """
      import random, sys
      random.seed(int(sys.argv[3]))
      with open(sys.argv[1], "wb") as file:
          for place, kind in enumerate(sys.argv[2]):
              file.seek(place * 4096)
              if kind == "d": file.write(b"\\1" + random.randbytes(4095))
              if kind == "b": file.write(bytes(random.choice((256, 300, 4095))).ljust(4096, b"\\7"))
              if kind == "z": file.write(bytes(4096))
          file.truncate(len(sys.argv[2]) * 4096)
      """
    try mustRun("python3", "-c", script, "\(sample.path)/in.raw", String(kinds), "\(seed)")
  }

  @Test(arguments: 0..<6)
  func everyKindOfUnitIsCopied(_ number: Int) throws {
    let seed = TwinCount.seed &+ UInt64(number)
    let sample = try Sample.make(SampleShape(), seed: seed)
    try makeRaw(sample, seed, units: 60)
    try mustRun(
      "sh", "-c",
      "cd \(sample.path) && qemu-img convert -f raw -O qcow2 -o cluster_size=\(512 << number) in.raw in.qcow2"
    )
    for (words, format) in [
      (["-f", "raw", "-O", "qcow2", "in.raw"], "qcow2"),
      (["-f", "raw", "-O", "raw", "in.raw"], "raw"),
      (["-f", "qcow2", "-O", "raw", "in.qcow2"], "raw"),
      (["-f", "qcow2", "-O", "qcow2", "in.qcow2"], "qcow2"),
      (["-f", "raw", "-O", "qcow2", "-o", "extended_l2=on", "in.raw"], "qcow2"),
    ] {
      try Conversion.run(words, sample, to: format)
    }
  }

  /// The host refuses, and everything goes through memory: on tmpfs to a disk's file system.
  @Test func acrossFileSystems() throws {
    let sample = try Sample.make(SampleShape(), seed: 5)
    try makeRaw(sample, 5, units: 200)
    let other = try TemporaryDirectory(in: "/var/tmp")
    for format in ["raw", "qcow2"] {
      let target = "\(other.path)/target.\(format)"
      let result = try Tools.qublk(
        ["convert", "-f", "raw", "-O", format, "in.raw", target], in: sample.path)
      #expect(result.succeeded, "\(result.errors)")
      try Tools.mustQEMU(
        "qemu-img", ["compare", "-f", "raw", "-F", format, "in.raw", target], in: sample.path)
      let back = try Tools.qublk(
        ["convert", "-f", format, "-O", "qcow2", target, "back.qcow2"], in: sample.path)
      #expect(back.succeeded, "\(back.errors)")
      try Tools.mustQEMU(
        "qemu-img", ["compare", "-f", "raw", "-F", "qcow2", "in.raw", "back.qcow2"], in: sample.path
      )
    }
  }

  /// Data of every layer of a chain, and of an external data file, lies in another file.
  @Test func fromEveryFileOfAChain() throws {
    for sample in Sample.some(4, 21, { $0.backing != .none && $0.cipher == .plain })
      + Sample.some(2, 22, { $0.dataFile != .none })
    {
      for format in ["raw", "qcow2"] {
        try Conversion.run(["-O", format] + sample.named, sample, to: format)
      }
    }
  }
}
