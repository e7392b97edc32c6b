import TestTools
import Testing

/// `resize` of both programs: sizes, modes, refusals, and what the image is afterwards.
@Suite(.enabled(if: Tools.hasQEMU, Tools.reason))
struct ResizeTests {
  /// Where things lie and how much room they take is the program's own affair.
  private static var sameInfo: Likeness {
    Likeness(ignoring: [
      "actual-size", "children", "allocated-clusters", "image-end-offset",
    ])
  }
  /// The texts of refusals are ours.
  private static var outputOnly: Likeness { Likeness() }

  private func words(_ sample: Sample, _ size: String, _ options: [String] = []) -> [String] {
    ["resize"] + options + sample.named + [size]
  }

  private func info(_ sample: Sample) -> [String] {
    ["info", "--output=json"] + (sample.isEncrypted ? [] : sample.named)
  }

  /// In version 2, QEMU cannot hide a backing file from what is added.
  @Test(arguments: Sample.some(14, 1) { !$0.isVersion2 || $0.backing == .none })
  func sizesGoUpAndDown(sample: Sample) throws {
    let size = sample.shape.size
    var random = SeededGenerator(seed: sample.seed)
    let odd = size + 512 * UInt64(1 + random.below(300))
    var twin = try Twin.change(words(sample, String(odd)), sample)
    twin = try twin.next(words(sample, "+3M"))
    twin = try twin.next(words(sample, "1k"))
    // At a cluster: of one that is cut, QEMU shows the old bytes again when the disk grows.
    let cluster = UInt64(1) << UInt64(sample.shape.clusterBits)
    let half = max(size / 2 / cluster, 1) * cluster
    twin = try twin.next(words(sample, String(half), ["--shrink"]))
    twin = try twin.next(words(sample, String(size * 2)))
    twin = try twin.next(words(sample, "-512", ["--shrink", "-q"]))
    if !sample.isEncrypted { try twin.next(info(sample), Self.sameInfo) }
  }

  @Test(
    arguments: Sample.some(8, 2) { $0.size < 1 << 30 && $0.cipher == .plain && !$0.isVersion2 })
  func whatIsAddedCanHavePlacesInAdvance(sample: Sample) throws {
    // QEMU gives clusters that it has freed without clearing them: what they held shows in its images.
    let likeness = Likeness(checksImages: false)
    let end = sample.shape.size
    for mode in ["metadata", "falloc", "full"] {
      let twin = try Twin.change(
        words(sample, "+2500k", ["--preallocation=\(mode)"]), sample, likeness)
      let ours = twin.ourSample
      try Tools.mustQEMU("qemu-img", ["check"] + ours.named, in: ours.path)
      #expect(try Tools.qublk(["check", Sample.name], in: ours.path).succeeded)
      try Tools.mustQEMU(
        "qemu-io", ["-c", "read -P 0 \(end) 2500k", Sample.name], in: ours.path)
      try twin.next(words(sample, "-1M", ["--shrink", "--preallocation", mode]), likeness)
    }
  }

  @Test(arguments: Sample.some(1, 3) { $0.cipher == .plain && $0.snapshots == 0 })
  func wrongWordsEndAlike(sample: Sample) throws {
    for size in ["1k", "0", "+1", "-1E", "x", "", "+", "20E", "7E", "1000", "0x", "1.5"] {
      try Twin.read(words(sample, size), sample, Self.outputOnly)
    }
    for options in [["--preallocation=none"], ["-f", "nosuch"], ["--preallocation=full"]] {
      try Twin.read(words(sample, "512", options), sample, Self.outputOnly)
    }
    try Twin.read(["resize"], sample, Self.outputOnly)
    try Twin.read(["resize", Sample.name], sample, Self.outputOnly)
    try Twin.read(["resize", "nosuch", "1M"], sample, Self.outputOnly)
    try Twin.read(["resize", Sample.name, "1M", "more"], sample, Self.outputOnly)
  }

  @Test(arguments: ["off", "falloc", "full", "metadata"])
  func rawFiles(mode: String) throws {
    let sample = try Sample.make(SampleShape(), seed: 1)
    try Tools.mustQEMU(
      "qemu-img", ["create", "-q", "-f", "raw", Sample.name, "1M"], in: sample.path)
    var likeness = Likeness(checksImages: false)
    likeness.comparesOutput = true
    let words = ["resize", "-f", "raw", "--preallocation", mode, Sample.name]
    let twin = try Twin.change(words + ["+1M"], sample, likeness)
    try twin.next(["resize", "-f", "raw", "--shrink", Sample.name, "-512"], likeness)
    let lengths = try [twin.ourSample, twin.theirSample].map {
      try contents($0.directory.file(Sample.name)).count
    }
    #expect(lengths[0] == lengths[1])
  }
}
