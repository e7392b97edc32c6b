import QCOW2Codec
import QCOW2Format
import QCOW2Tools
import TestTools
import Testing

/// Changes of options that end at any step, and what a power cut may leave of them.
@Suite(.enabled(if: hasQEMU, "needs qemu-img and qemu-io")) struct AmendTests {
  struct Case: Sendable, CustomTestStringConvertible {
    var script: String
    var options: String
    /// The bytes of the feature name table that the image has afterwards; nil for any number.
    var nameBytes: Int?
    var testDescription: String { "\(options) of: \(script)" }
  }

  private static let create = "qemu-img create -q -f qcow2"
  private static let fill =
    "qemu-io -c 'write -P 1 0 100k' -c 'write -z 64k 200k' -c 'write -P 3 300k 60k' "
    + "-c 'write -z -u 320k 40k' x >/dev/null"
  private static let snapshots =
    "qemu-img snapshot -c a x; qemu-io -c 'write -z 0 64k' -c 'write -P 5 300k 8k' x >/dev/null; "
    + "qemu-img snapshot -c b x"

  /// An image with data, zeros in every form, and snapshots, with or without a backing file.
  private static func script(_ options: String, backing: String? = nil) -> String {
    guard let backing else { return "\(create) -o \(options) x 8M; \(fill); \(snapshots)" }
    return """
      \(create) '\(backing)' 8M; qemu-io -c 'write -P 9 0 2M' '\(backing)' >/dev/null
      \(create) -b '\(backing)' -F qcow2 -o \(options) x 8M; \(fill); \(snapshots)
      """
  }

  private static let longName = String(repeating: "long", count: 60)

  static let cases: [Case] = [
    Case(script: script("cluster_size=4k"), options: "compat=0.10", nameBytes: 0),
    Case(script: script("cluster_size=4k"), options: "refcount_bits=64"),
    Case(script: script("cluster_size=4k,refcount_bits=4"), options: "compat=v2,refcount_bits=16"),
    Case(
      script: script("cluster_size=8k"), options: "compat=v2,refcount_bits=16,lazy_refcounts=off"),
    Case(script: script("cluster_size=4k,compat=0.10"), options: "compat=1.1,lazy_refcounts=on"),
    Case(
      script: script("cluster_size=8k,compat=0.10"), options: "compat=1.1,refcount_bits=8",
      nameBytes: 384),
    Case(
      script: script("cluster_size=8k,compat=0.10", backing: "base"), options: "compat=1.1",
      nameBytes: 384),
    Case(
      script: script("cluster_size=8k,compat=0.10", backing: longName), options: "compat=1.1",
      nameBytes: 384),
    Case(script: script("cluster_size=512,compat=0.10", backing: "base"), options: "compat=1.1"),
    Case(script: script("cluster_size=8k", backing: "base"), options: "compat=0.10", nameBytes: 0),
    Case(script: script("cluster_size=512", backing: longName), options: "compat=0.10"),
    Case(
      script: BrokenImage.Base.compressed.script + "; mv compressed x", options: "refcount_bits=32"),
    Case(script: BrokenImage.Base.bitmaps.script + "; mv bitmaps x", options: "refcount_bits=1"),
    Case(script: BrokenImage.Base.extended.script + "; mv extended x", options: "refcount_bits=2"),
    Case(
      script: "\(create) -o data_file=outside x 8M",
      options: "data_file=\(String(repeating: "other", count: 20)),refcount_bits=8"),
  ]

  @Test(arguments: cases)
  func aCrashAtAnyStepLeavesOneImageOrTheOther(case test: Case) throws {
    let seed = testSeed("amend crash", fallback: .random(in: 0...UInt64.max))
    var random = SeededGenerator(seed: seed)
    let folder = try Folder()
    folder.run(test.script)
    let original = folder.bytes("x")
    try #require(!original.isEmpty)
    let view = try DiskView(original)
    let options = try AmendOptions(lists: [test.options])
    let whole = CrashBytes(original)
    try ImageAmend(whole, options).run()
    try check(whole.durable, view, options, test)
    for limit in 1...whole.steps {
      let crashing = CrashBytes(original, limit: limit)
      #expect(throws: ToolError.self) { try ImageAmend(crashing, options).run() }
      let state = crashing.cut(&random)
      let found = try ImageCheck.run(MemoryBytes(state))
      let isDirty = ImageEditor(state).get(4, 4) >= 3 && ImageEditor(state).get(72, 8) & 1 == 1
      #expect(found.corruptions == 0 || isDirty, "cut at \(limit) of \(whole.steps), seed \(seed)")
      #expect(try DiskView(state) == view, "cut at \(limit) of \(whole.steps), seed \(seed)")
      let again = MemoryBytes(state)
      try ImageAmend(again, options).run()
      try check(again.bytes, view, options, test, isResumed: true)
    }
  }

  private func check(
    _ bytes: [UInt8], _ view: DiskView, _ options: AmendOptions, _ test: Case,
    isResumed: Bool = false
  ) throws {
    var findings: [String] = []
    let result = try ImageCheck.run(MemoryBytes(bytes)) { findings.append($0.message) }
    #expect(result.exitCode == 0, "\(findings.prefix(3))")
    #expect(try DiskView(bytes) == view)
    let head = try HeaderCluster(reading: MemoryBytes(bytes))
    if let version = options.version { #expect(head.header.version == version) }
    if let order = options.refcountOrder { #expect(head.header.refcountOrder == UInt32(order)) }
    if let name = options.dataFile { #expect(head.dataFile == name) }
    if let lazy = options.lazyRefcounts, head.header.version > 2 {
      #expect(head.header.compatible.contains(.lazyRefcounts) == lazy)
    }
    // A crash may leave fewer names of features than there are; they are for people.
    if let count = test.nameBytes, !isResumed {
      #expect(head.last(.featureNames)?.length ?? 0 == count)
    }
  }

  @Test func whatIsRefusedChangesNothing() throws {
    let folder = try Folder()
    folder.run(
      """
      \(Self.script("cluster_size=4k")); qemu-img resize -q x 16M; \(Self.create) -o extended_l2=on e 8M
      \(Self.create) -o data_file=o d 8M; \(Self.create) b 8M; qemu-img bitmap --add b n
      """)
    for (name, options) in [
      ("x", "compat=0.10"), ("x", "refcount_bits=1"), ("e", "compat=0.10"), ("d", "compat=0.10"),
      ("b", "compat=0.10"), ("x", "data_file=y"), ("x", "data_file_raw=on"),
      ("x", "backing_file=y"), ("x", "compat=0.10,refcount_bits=8"),
    ] {
      let bytes = MemoryBytes(folder.bytes(name))
      let before = bytes.bytes
      let options = try AmendOptions(lists: [options])
      #expect(throws: ToolError.self) { try ImageAmend(bytes, options).run() }
      #expect(bytes.bytes == before, "\(name): \(options)")
    }
  }
}

/// What a guest reads of the disk and of each snapshot, by cluster, however the tables say it.
struct DiskView: Equatable {
  /// What is not zeros; `nil` stands for what the backing file has.
  private var disks: [[Int: UInt64?]] = []
  private var names: [String?] = []

  init(_ bytes: [UInt8]) throws {
    let image = ImageEditor(bytes)
    let head = try HeaderCluster(reading: MemoryBytes(bytes))
    names = [head.backingFile, head.backingFormat]
    let reader = Reader(bytes: bytes, image: image, header: head.header)
    disks.append(reader.disk(l1: image.l1, entries: Int(image.get(36, 4))))
    var place = image.snapshots
    for _ in 0..<Int(image.get(60, 4)) {
      disks.append(
        reader.disk(l1: Int(image.get(place, 8)), entries: Int(image.get(place + 8, 4))))
      let lengths = image.get(place + 12, 2) + image.get(place + 14, 2) + image.get(place + 36, 4)
      place = (place + 40 + Int(lengths) + 7) & ~7
    }
  }

  private struct Reader {
    let bytes: [UInt8]
    let image: ImageEditor
    let header: Header
    var isExtended: Bool { header.incompatible.contains(.extendedL2) }

    func disk(l1: Int, entries: Int) -> [Int: UInt64?] {
      var disk: [Int: UInt64?] = [:]
      let step = isExtended ? 16 : 8
      let perTable = image.clusterSize / step
      let clusters = (Int(header.size) + image.clusterSize - 1) / image.clusterSize
      for cluster in 0..<clusters where cluster / perTable < entries {
        let table = Int(image.get(l1 + cluster / perTable * 8, 8) & ImageEditor.offsetMask)
        let place = table + cluster % perTable * step
        let entry = table == 0 ? 0 : image.get(place, 8)
        let bitmap = table == 0 || !isExtended ? 0 : image.get(place + 8, 8)
        if let found = contents(entry, bitmap) { disk[cluster] = found }
      }
      return disk
    }

    /// Nil for zeros.
    private func contents(_ entry: UInt64, _ bitmap: UInt64) -> UInt64?? {
      let host = Int(entry & ImageEditor.offsetMask)
      if entry >> 62 & 1 == 1 { return hash(entry, ofBytes: 0..<0) }
      if header.version >= 3, !isExtended, entry & 1 == 1 { return nil }
      if host == 0, bitmap == 0 { return header.backingFileOffset == 0 ? nil : .some(nil) }
      let range = host..<(host + (host == 0 ? 0 : image.clusterSize))
      if bytes[range].allSatisfy({ $0 == 0 }), !isExtended { return nil }
      return hash(bitmap, ofBytes: range)
    }

    private func hash(_ start: UInt64, ofBytes range: Range<Int>) -> UInt64 {
      bytes[range].reduce(start ^ 0xcbf2_9ce4_8422_2325) { ($0 ^ UInt64($1)) &* 0x100_0000_01b3 }
    }
  }
}
