import BlockCore
import Glibc
import QCOW2Engine
import TestTools
import Testing

/// Internal snapshots that qemu-img takes, kept and read by our engine.
@Suite(.enabled(if: hasQEMU, Qemu.reason))
struct SnapshotTests {
  struct Kind: Sendable, CustomTestStringConvertible {
    let clusterSize: UInt64
    /// nil for version 2.
    let refcountBits: Int?

    var options: String {
      "cluster_size=\(clusterSize),"
        + (refcountBits.map { "compat=1.1,refcount_bits=\($0)" } ?? "compat=0.10")
    }
    var testDescription: String { options }
  }

  static let kinds = Combination.clusterSizes.flatMap { size in
    [nil, 2, 16, 64].map { Kind(clusterSize: size, refcountBits: $0) }
  }

  @Test("What snapshots hold survives heavy writing, and attaches as it was", arguments: kinds)
  func snapshotsSurviveWriting(kind: Kind) throws {
    var random = SeededGenerator(seed: runSeed)
    let scratch = try Scratch()
    let path = try makeImage(
      scratch, kind.options, size: String((kind.clusterSize == 512 ? 3 : 24) << 20))
    let size: UInt64 = (kind.clusterSize == 512 ? 3 : 24) << 20
    let shadow = try Shadow(scratch.file("shadow.raw"), size: size)
    var source = OperationSource(random.fork(), clusterSize: kind.clusterSize, diskSize: size)
    for name in ["one", "two"] {
      try work(path, shadow, &source, &random)
      try mustRun("qemu-img", "snapshot", "-c", name, path)
      try mustRun("cp", "--sparse=always", shadow.path, scratch.file(name))
    }
    try work(path, shadow, &source, &random)
    try judge(path, shadow)
    for name in ["one", "two"] {
      let then = scratch.file("then.raw")
      try mustRun(
        "qemu-img", "convert", "-f", "qcow2", "-O", "raw", "-l", "snapshot.name=\(name)", path, then
      )
      #expect(try Qemu.rawDifference(then, scratch.file(name)) == nil)
      try verifySnapshot(path, .idOrName(name), raw: scratch.file(name), size: size, &random)
    }
  }

  private func work(
    _ path: String, _ shadow: Shadow, _ source: inout OperationSource,
    _ random: inout SeededGenerator
  ) throws {
    var work: [[GuestOperation]] = []
    for _ in 0..<20 { work.append(source.batch(Int.random(in: 1...8, using: &random))) }
    let batches = work
    try withImage(path, &random) { session in
      for batch in batches {
        try await session.perform(batch, shadow)
        await session.image.maintain()
      }
    }
  }

  @Test("A refcount of one bit cannot count a snapshot, and nothing is lost by trying")
  func oneBitRefcounts() throws {
    let scratch = try Scratch()
    let path = try makeImage(scratch, "refcount_bits=1")
    try openImage(path, readOnly: false) { try await $0.writePattern(7, at: 4096, count: 8192) }
    #expect(try !run(["qemu-img", "snapshot", "-c", "one", path]).succeeded)
    try openImage(path, readOnly: false) { try await $0.writePattern(8, at: 8192, count: 8192) }
    // The attempt leaks its copy of the L1 table, in QEMU 7.2.
    try mustRun("qemu-img", "check", "-q", "-r", "leaks", path)
    #expect(try Qemu.complaint(path) == nil)
    try Qemu.io(path, ["read -P 7 4k 4k", "read -P 8 8k 8k"])
  }

  @Test("Snapshots attach at the size that the disk had", arguments: ["4096", "65536"])
  func snapshotsOfOtherSizes(clusterSize: String) throws {
    var random = SeededGenerator(seed: runSeed)
    let scratch = try Scratch()
    let path = try makeImage(scratch, "cluster_size=\(clusterSize)", size: "3M")
    let sizes: [(name: String, size: UInt64)] = [
      ("small", 3 << 20), ("large", 40 << 20), ("odd", (5 << 20) + 512),
    ]
    for (index, (name, size)) in sizes.enumerated() {
      try mustRun("qemu-img", "resize", "--shrink", path, String(size))
      try Qemu.io(path, ["write -P \(index + 1) 1M 1M", "write -P 9 \(size - 512) 512"])
      try mustRun("qemu-img", "snapshot", "-c", name, path)
      try mustRun("qemu-img", "convert", "-O", "raw", path, scratch.file(name))
    }
    try mustRun("qemu-img", "resize", "--shrink", path, "1M")
    try openImage(path, readOnly: false) { image in
      try await image.writePattern(0x55, at: 0, count: 1 << 20)
    }
    for (name, size) in sizes {
      try verifySnapshot(path, .name(name), raw: scratch.file(name), size: size, &random)
    }
    #expect(try Qemu.complaint(path) == nil)
  }

  @Test("An ID comes before a name, and what is not there is refused by name")
  func selection() throws {
    var random = SeededGenerator(seed: runSeed)
    let scratch = try Scratch()
    let path = try makeImage(scratch, "cluster_size=4096")
    for (byte, name) in [(1, "2"), (2, "1"), (3, "same")] {
      try Qemu.io(path, ["write -P \(byte) 0 8M"])
      try mustRun("qemu-img", "snapshot", "-c", name, path)
      try mustRun("qemu-img", "convert", "-O", "raw", path, scratch.file("\(byte)"))
    }
    func holds(_ selector: SnapshotSelector, _ byte: Int) throws {
      try verifySnapshot(path, selector, raw: scratch.file("\(byte)"), size: 8 << 20, &random)
    }
    try holds(.idOrName("1"), 1)
    try holds(.name("1"), 2)
    try holds(.id("2"), 2)
    try holds(.idOrName("same"), 3)
    try holds(.exact(id: "3", name: "same"), 3)
    try mustRun(
      "qemu-img", "convert", "-l", "1", "-O", "raw", path, scratch.file("then"))
    #expect(try Qemu.rawDifference(scratch.file("then"), scratch.file("1")) == nil)
    var options = ImageOptions()
    options.snapshot = .idOrName("four")
    let missing = options
    let error = #expect(throws: ImageError.self) { try withEngine(path, missing) { _ in } }
    #expect(
      error?.message
        == "no internal snapshot has the ID or name \"four\": "
        + "the image has 1 \"2\", 2 \"1\", 3 \"same\"")
  }

  @Test("Extra data that nobody knows keeps its bytes")
  func unknownExtraDataStays() throws {
    let scratch = try Scratch()
    let path = try makeImage(scratch, "cluster_size=4096")
    try Qemu.io(path, ["write -P 1 0 8M"])
    try mustRun("qemu-img", "snapshot", "-c", "kept", path)
    let table = try makeExtraDataLonger(path)
    let before = Array(try contents(path)[table])
    try withEngine(path) { image in
      try await image.writePattern(2, at: 1 << 20, count: 1 << 20)
      let state = patternBuffer(200 << 10, seed: 1)
      try await image.writeVMState(from: state.data, at: 0)
      try await image.resize(to: 100 << 20)
      try await image.writePattern(3, at: 90 << 20, count: 1 << 20)
      try await image.resize(to: 7 << 20)
      withExtendedLifetime(state) {}
    }
    #expect(Array(try contents(path)[table]) == before)
    #expect(try Qemu.complaint(path) == nil)
    try mustRun(
      "qemu-img", "convert", "-l", "snapshot.name=kept", "-O", "raw", path, scratch.file("then"))
    try mustRun("qemu-io", "-f", "raw", "-c", "read -P 1 0 7M", scratch.file("then"))
  }

  /// Puts 40 unknown bytes behind the known extra data of the only snapshot; the table's bytes.
  private func makeExtraDataLonger(_ path: String) throws -> Range<Int> {
    let bytes = try contents(path)
    func number(_ at: Int, _ count: Int) -> Int {
      bytes[at..<(at + count)].reduce(0) { $0 << 8 | Int($1) }
    }
    let start = number(64, 8)
    let texts = number(start + 12, 2) + number(start + 14, 2)
    let known = number(start + 36, 4)
    let head = Array(bytes[start..<(start + 36)])
    let extra = Array(bytes[(start + 40)..<(start + 40 + known)])
    let rest = Array(bytes[(start + 40 + known)..<(start + 40 + known + texts)])
    let length: [UInt8] = [0, 0, 0, UInt8(known + 40)]
    let unknown = (0..<40).map { UInt8(200 - $0) }
    let entry = head + length + extra + unknown + rest
    try patch(path, at: start, entry)
    return start..<(start + entry.count)
  }
}
