import Glibc
import TestTools
import Testing

/// `convert --bitmaps` of both programs: the same answers, and targets whose bitmaps have the same bits.
@Suite(.enabled(if: Tools.hasQEMU, Tools.reason))
struct ConvertBitmapTests {
  /// An image with three bitmaps, of which two follow the writes that came after.
  private func sample(_ shape: SampleShape, _ seed: UInt64) throws -> Sample {
    let sample = try Sample.make(shape, seed: seed)
    for words in [
      ["bitmap", "--add", "-g", "4k", Sample.name, "fine"],
      ["bitmap", "--add", "-g", "1M", Sample.name, "coarse"],
      ["bitmap", "--add", Sample.name, "off"],
    ] {
      try Tools.mustQEMU("qemu-img", words, in: sample.path)
    }
    try Tools.mustQEMU(
      "qemu-io", ["-c", "write 12k 3k", "-c", "write -z 2M 70k", Sample.name], in: sample.path)
    try Tools.mustQEMU("qemu-img", ["bitmap", "--disable", Sample.name, "off"], in: sample.path)
    return sample
  }

  @Test(arguments: [
    SampleShape(), .with { $0.clusterBits = 9 }, .with { $0.clusterBits = 21 },
    .with { $0.hasBitmaps = true }, .with { $0.isExtended = true }, .with { $0.snapshots = 2 },
  ])
  func theTargetHasTheSameBitmaps(shape: SampleShape) throws {
    let sample = try sample(shape, TwinCount.seed &+ UInt64(shape.clusterBits))
    for words in [[], ["-c"], ["-o", "cluster_size=4k"], ["-o", "extended_l2=on"], ["-S", "0"]] {
      let twin = try Conversion.run(
        ["--bitmaps", "-O", "qcow2"] + words + [Sample.name], sample, to: "qcow2")
      let ours = try twin.ourSample.bitmaps(of: "target")
      #expect(ours.count >= 3 && !ours[0].hasSuffix("[]"), "\(ours)")
      #expect(try ours == twin.theirSample.bitmaps(of: "target"), "\(words) \(sample)")
    }
  }

  @Test func aBrokenBitmapIsRefusedOrLeftOut() throws {
    let sample = try sample(.with { $0.hasBitmaps = true }, 11)
    try markInUse("fine", in: "\(sample.path)/\(Sample.name)")
    let refused = try Conversion.run(
      ["--bitmaps", "-O", "qcow2", Sample.name], sample, to: "qcow2")
    #expect(refused.ours.status == 1)
    #expect(refused.ours.errors.contains("Cannot copy inconsistent bitmap 'fine'"))
    #expect(!fileExists("\(refused.ourSample.path)/target"))
    let twin = try Conversion.run(
      ["--bitmaps", "--skip-broken-bitmaps", "-O", "qcow2", Sample.name], sample, to: "qcow2")
    #expect(twin.ours.errors.contains("warning: Skipping inconsistent bitmap 'fine'"))
    let ours = try twin.ourSample.bitmaps(of: "target")
    #expect(!ours.contains { $0.contains("fine") } && ours.contains { $0.contains("coarse") })
    #expect(try ours == twin.theirSample.bitmaps(of: "target"))
  }

  /// Sets the flag "in use" of a bitmap: its entry in the directory begins 24 bytes before its name.
  private func markInUse(_ name: String, in path: String) throws {
    let script = """
      import sys
      data = bytearray(open(sys.argv[1], "rb").read())
      place = data.rindex(sys.argv[2].encode()) - 24
      data[place + 15] |= 1
      open(sys.argv[1], "wb").write(data)
      """
    try mustRun("python3", "-c", script, path, name)
  }

  @Test(arguments: [
    ["--bitmaps", "-O", "raw", Sample.name],
    ["--bitmaps", "-f", "raw", "-O", "qcow2", Sample.name],
    ["--bitmaps", "-O", "qcow2", Sample.name, Sample.name],
    ["--bitmaps", "-O", "qcow2", "-o", "compat=0.10", Sample.name],
  ])
  func whereThereCanBeNoneTheCopyIsRefused(_ words: [String]) throws {
    let sample = try sample(SampleShape(), 13)
    let twin = try Conversion.run(words, sample, to: "qcow2")
    #expect(twin.ours.status == 1)
    #expect(!fileExists("\(twin.ourSample.path)/target"))
  }

  @Test func intoAnImageThatIsThere() throws {
    let sample = try sample(SampleShape(), 17)
    for size in ["\(sample.shape.size)", "\(sample.shape.size * 2)"] {
      let files = try sample.copy()
      try Tools.mustQEMU(
        "qemu-img", ["create", "-q", "-f", "qcow2", "target", size], in: files.path)
      let words = ["--bitmaps", "-n", "-O", "qcow2", Sample.name]
      let twin = try Conversion.run(words, files, to: "qcow2")
      if twin.ours.succeeded {
        #expect(
          try twin.ourSample.bitmaps(of: "target") == twin.theirSample.bitmaps(of: "target"))
      } else {
        #expect(twin.ours.errors.contains("Failed to populate bitmap fine"))
      }
      // A second time they are there already.
      try twin.next(
        ["convert"] + words + ["target"], Likeness(comparesOutput: false, checksImages: false))
    }
  }
}
