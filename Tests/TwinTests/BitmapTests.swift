import JSON
import TestTools
import Testing

/// `bitmap` of both programs: the same answers, and bitmaps with the same bits.
@Suite(.enabled(if: Tools.hasQEMU, Tools.reason))
struct BitmapTests {
  private static let names = ["b0", "b1", "b2", String(repeating: "n", count: 1023)]

  /// Shapes that bitmaps can be in, with and without room behind the extensions.
  static let shapes: [SampleShape] = [
    SampleShape(), .with { $0.clusterBits = 9 }, .with { $0.clusterBits = 21 },
    .with { $0.hasBitmaps = true }, .with { $0.isExtended = true },
    .with { $0.backing = .qcow2 }, .with { $0.dataFile = .external },
    .with { $0.isLazy = true }, .with { $0.snapshots = 2 },
  ]

  private func write(_ random: inout SeededGenerator, _ twin: [Sample]) throws {
    let kind = ["write", "write -z", "discard"][random.below(3)]
    let length = [512, 4096, 65536, 300_000 / 512 * 512][random.below(4)]
    let start = random.below((3 << 20) / 512) * 512
    for sample in twin {
      try Tools.mustQEMU(
        "qemu-io", ["-c", "\(kind) \(start) \(length)", Sample.name], in: sample.path)
    }
  }

  private func words(_ random: inout SeededGenerator) -> [String] {
    var words = ["bitmap"]
    for _ in 0..<(1 + random.below(2)) {
      switch random.below(9) {
      case 0, 1, 2: words.append("--add")
      case 3: words.append("--remove")
      case 4: words.append("--clear")
      case 5: words.append("--enable")
      case 6: words.append("--disable")
      case 7: words += ["--merge", Self.names[random.below(3)]]
      default: words += random.chance(30) ? ["--remove-all"] : ["--clear"]
      }
    }
    if words.contains("--add"), random.chance(60) {
      words += ["-g", ["4k", "16k", "64k", "1M", "2G", "3k", "256", "4G"][random.below(8)]]
    }
    return words + [Sample.name, Self.names[random.below(4)]]
  }

  @Test(arguments: shapes)
  func theSameCommandsLeaveTheSameBitmaps(shape: SampleShape) throws {
    var random = SeededGenerator(seed: TwinCount.seed &+ UInt64(shape.clusterBits))
    let sample = try Sample.make(shape, seed: random.next())
    let first = try Twin.change(
      ["bitmap", "--add", "-g", "4k", Sample.name, "b0"], sample,
      Likeness(comparesErrors: false))
    let twin = [first.ourSample, first.theirSample]
    for _ in 0..<8 {
      if random.chance(60) { try write(&random, twin) }
      _ = try first.next(words(&random))
      #expect(try twin[0].bitmaps() == twin[1].bitmaps(), "\(sample)")
    }
  }

  @Test func wrongCommandsEndAlike() throws {
    let sample = try Sample.make(.with { $0.hasBitmaps = true }, seed: 7)
    let name = Sample.name
    let wrong: [[String]] = [
      [], [name], [name, "b"], ["--add", name], ["--add", name, ""], ["--remove-all", name, "b"],
      ["--clear", "-g", "64k", name, "b"], ["--add", "-b", name, name, "b"],
      ["--merge", "b", "-F", "qcow2", name, "c"], ["--merge", "no", name, "b"],
      ["--remove", name, "no"], ["--add", "-g", "abc", name, "b"],
      ["--add", "-g", "1k0", name, "b"],
      ["--add", "-g", "600", name, "b"], ["--add", name, "b", "c"], ["--add", "--add", name, "b"],
      ["--add", name, String(repeating: "x", count: 1024)], ["--bogus", name, "b"],
      ["--add", "nothing.qcow2", "b"], ["--merge", "x", "-b", "nothing.qcow2", name, "b"],
    ]
    for words in wrong { try Twin.change(["bitmap"] + words, sample) }
  }

  @Test func bitmapsOfAnotherImageAreMerged() throws {
    var random = SeededGenerator(seed: TwinCount.seed)
    let sample = try Sample.make(SampleShape(), seed: random.next())
    for (command, tool) in [
      ("create -f qcow2 other.qcow2 \(sample.shape.size)", "qemu-img"),
      ("bitmap --add -g 8k other.qcow2 src", "qemu-img"),
      ("-c write|40k|5k -c write|3M|512 other.qcow2", "qemu-io"),
      ("create -f qcow2 larger.qcow2 1G", "qemu-img"),
      ("bitmap --add larger.qcow2 src", "qemu-img"),
    ] {
      let words = command.split(separator: " ").map { word in
        String(word.map { $0 == "|" ? " " : $0 })
      }
      try Tools.mustQEMU(tool, words, in: sample.path)
    }
    for granularity in ["512", "4k", "1M"] {
      let twin = try Twin.change(
        [
          "bitmap", "--add", "--merge", "src", "-g", granularity, "-b", "other.qcow2", Sample.name,
          "b",
        ],
        sample)
      #expect(try twin.ourSample.bitmaps() == twin.theirSample.bitmaps())
      try twin.next(["bitmap", "--merge", "src", "-b", "larger.qcow2", Sample.name, "b"])
    }
  }

  @Test(arguments: shapes)
  func aChainOfBackupsReadsAsTheDisk(shape: SampleShape) throws {
    var random = SeededGenerator(seed: TwinCount.seed &+ 3)
    let sample = try Sample.make(shape, seed: random.next())
    func qublk(_ words: String...) throws {
      let result = try Tools.qublk(words, in: sample.path)
      #expect(result.succeeded, "\(words): \(result.errors)")
    }
    func same(_ one: String) throws {
      try Tools.mustQEMU("qemu-img", ["compare", one, Sample.name], in: sample.path)
    }
    try qublk("bitmap", "--add", "-g", "8k", Sample.name, "n")
    try qublk("backup", "--since", "n", "--full", "--clear", Sample.name, "d0.qcow2")
    try qublk("backup", "--since", "n", "--full", "-O", "raw", Sample.name, "copy.raw")
    try qublk("convert", "-O", "qcow2", "d0.qcow2", "restored.qcow2")
    for number in 1..<4 {
      for _ in 0..<3 { try write(&random, [sample]) }
      try qublk("backup", "--since", "n", "-O", "raw", Sample.name, "copy.raw")
      try qublk(
        "backup", "--since", "n", "--clear", "-b", "d\(number - 1).qcow2", Sample.name,
        "d\(number).qcow2")
      try qublk("restore", "d\(number).qcow2", "restored.qcow2")
      for name in ["d\(number).qcow2", "restored.qcow2"] { try same(name) }
      try Tools.mustQEMU(
        "qemu-img", ["compare", "-f", "raw", "-F", "qcow2", "copy.raw", Sample.name],
        in: sample.path)
      try Tools.mustQEMU("qemu-img", ["check", "d\(number).qcow2"], in: sample.path)
    }
    let empty = try Tools.qublk(
      ["backup", "--since", "n", Sample.name, "empty.qcow2"], in: sample.path)
    #expect(empty.succeeded)
    let map = try Tools.mustQEMU(
      "qemu-img", ["map", "--output=json", "empty.qcow2"], in: sample.path)
    #expect(!map.contains("\"present\": true"))
  }
}
