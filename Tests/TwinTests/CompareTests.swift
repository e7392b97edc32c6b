import TestTools
import Testing

/// `compare` beside qemu-img's: texts and exit statuses.
@Suite(.enabled(if: Tools.hasQEMU, Tools.reason))
struct CompareTests {
  private static func compare(
    _ words: [String], _ sample: Sample, _ files: [String],
    at place: SourceLocation = #_sourceLocation
  ) throws {
    try Twin.read(["compare"] + words + files, sample, Likeness(), at: place)
  }

  @Test(arguments: Sample.tried.filter { !$0.isEncrypted })
  func everySampleWithItsCopy(_ sample: Sample) throws {
    let files = try sample.copy()
    try Tools.mustQEMU(
      "qemu-img", ["convert", "-O", "raw", Sample.name, "raw"], in: files.path)
    try Tools.mustQEMU(
      "qemu-img", ["convert", "-O", "qcow2", "-c", "raw", "small"], in: files.path)
    try Self.compare([], files, [Sample.name, "raw"])
    try Self.compare(["-F", "qcow2", "-f", "raw"], files, ["raw", "small"])
    try Self.compare(["-s"], files, [Sample.name, Sample.name])
    try Self.compare(["-s"], files, ["small", "raw"])
  }

  /// Wherever it lies, the first sector that differs is told.
  @Test func oneByteThatDiffers() throws {
    var random = SeededGenerator(seed: TwinCount.seed &+ 21)
    for sample in Sample.some(6, 9, { $0.size <= 16 << 20 && $0.cipher == .plain }) {
      let files = try sample.copy()
      try Tools.mustQEMU(
        "qemu-img", ["convert", "-O", "raw", Sample.name, "raw"], in: files.path)
      let size = Int(sample.shape.size)
      for _ in 0..<3 {
        for _ in 0..<2 {
          let offset = random.below(size)
          try patch("\(files.path)/raw", at: offset, [UInt8(1 + random.below(255))])
        }
        try Self.compare([], files, [Sample.name, "raw"])
        try Self.compare([], files, ["raw", Sample.name])
        try Self.compare(["-q"], files, ["raw", Sample.name])
      }
    }
  }

  @Test func sizesThatDiffer() throws {
    let sample = try #require(
      Sample.some(1, 10, { $0.size == 4 << 20 && $0.cipher == .plain }).first)
    let files = try sample.copy()
    for name in ["long", "other"] {
      try Tools.mustQEMU(
        "qemu-img", ["convert", "-O", "raw", Sample.name, name], in: files.path)
      try mustRun("truncate", "-s", "6M", "\(files.path)/\(name)")
    }
    try patch("\(files.path)/other", at: 5_000_001, [1])
    for words in [[], ["-s"], ["-q"]] {
      try Self.compare(words, files, [Sample.name, "long"])
      try Self.compare(words, files, ["long", Sample.name])
      try Self.compare(words, files, ["other", Sample.name])
      try Self.compare(words, files, [Sample.name, "other"])
    }
  }

  @Test(arguments: [
    [], ["one"], ["a", "b", "c"], [Sample.name, "nosuch"], ["nosuch", Sample.name],
    ["-T", "foo", Sample.name, Sample.name], ["-f", "qcow2", "random", "random"],
    ["--image-opts", "-f", "raw", "random", "random"], ["--foo", "a", "b"],
    ["--image-opts", "driver=raw,file.filename=random", "driver=qcow2,file.filename=image.qcow2"],
    ["-U", Sample.name, Sample.name], ["-F", "vmdk", "random", "random"],
  ])
  func words(_ words: [String]) throws {
    let files = try Sample.all[0].copy()
    try mustRun("sh", "-c", "head -c 100000 /dev/urandom > \(files.path)/random")
    try Self.compare([], files, words)
  }

  @Test func whatCannotBeReadIsNoAnswer() throws {
    let sample = try #require(
      Sample.all.first { $0.shape.isCompressed && $0.shape.backing == .none })
    let files = try sample.copy()
    // The first L2 table is said to be behind the end of all offsets that are allowed.
    let header = try contents("\(files.path)/\(Sample.name)")
    let table = header[40..<48].reduce(0) { $0 << 8 | Int($1) }
    try patch("\(files.path)/\(Sample.name)", at: table, [0x80, 0, 0, 0, 0, 0, 0x33, 0])
    try Tools.mustQEMU(
      "qemu-img", ["create", "-q", "-f", "raw", "raw", "\(sample.shape.size)"], in: files.path)
    try Self.compare([], files, [Sample.name, "raw"])
    try Self.compare([], files, ["raw", Sample.name])
  }
}
