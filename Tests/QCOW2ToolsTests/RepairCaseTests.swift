import BlockCore
import Glibc
import QCOW2Tools
import TestTools
import Testing

/// Damage that qemu-img repairs, or repairs in part: ours mends as much, counts the same, and says
/// what stays.
@Suite(.enabled(if: hasQEMU, "needs qemu-img and qemu-io")) struct RepairCaseTests {
  /// One damaged image, and what `check -r all` makes of it.
  struct Case: Sendable, CustomStringConvertible {
    let description: String
    let script: String
    /// Exit status of a check after the repair.
    let status: Int32
    let corruptionsFixed: UInt64
    let leaksFixed: UInt64
  }

  private static let create = "qemu-img create -q -f qcow2"
  private static let poke = """
    poke() { printf "$3" | dd of="$1" bs=1 seek=$(($2)) conv=notrunc status=none; }

    """

  static let cases = [
    Case(
      description: "a leak beside data that lies in a snapshot's L2 table",
      script: """
        \(create) x 64M; qemu-io -c 'write -P 1 0 512' x; qemu-img snapshot -c foo x
        qemu-io -c 'write -P 2 0 512' x; poke x 524288 '\\x80\\0\\0\\0\\0\\x04\\0\\0'
        """, status: 0, corruptionsFixed: 2, leaksFixed: 1),
    Case(
      description: "an L2 entry beyond the end, and no refcount block",
      script: """
        \(create) x 64M; qemu-io -c 'write -P 1 0 128k' x
        poke x 0x40008 '\\x80\\0\\0\\0\\0\\x90\\0\\0'; poke x 0x10000 '\\0\\0\\0\\0\\0\\0\\0\\0'
        """, status: 2, corruptionsFixed: 6, leaksFixed: 0),
    Case(
      description: "a preallocated zero cluster that is not aligned",
      script: """
        \(create) x 64M; qemu-io -c 'write 0 64k' -c 'discard 0 64k' x
        poke x 0x40000 '\\x80\\0\\0\\0\\0\\0\\x2a\\x01'
        """, status: 0, corruptionsFixed: 1, leaksFixed: 0),
    Case(
      description: "a refcount block beyond the end",
      script: """
        \(create) x 64M; qemu-io -c 'write 0 64k' x
        poke x 65544 '\\0\\0\\0\\0\\0\\x10\\0\\0'
        """, status: 0, corruptionsFixed: 2, leaksFixed: 0),
  ]

  @Test(arguments: cases) func repairMendsWhatQEMUMends(_ what: Case) throws {
    let folder = try Folder()
    folder.run(Self.poke + what.script + "; cp x y")
    let bytes = MemoryBytes(folder.bytes("x"))
    let changes = try RefcountRebuild.repair(bytes, .all)
    let findings = Findings()
    var after = try ImageCheck.run(bytes) { findings.add($0) }
    after.note(changes)
    try folder.write(bytes.bytes, "x")
    #expect(after.exitCode == what.status, "\(findings.all.map(\.message))")
    #expect(after.corruptionsFixed == what.corruptionsFixed)
    #expect(after.leaksFixed == what.leaksFixed)
    #expect(after.leaks == 0)
    // QEMU sees in our result what it sees in its own.
    let theirs = folder.run("qemu-img check -r all --output=json y")
    #expect(theirs.status == what.status)
    #expect(folder.run("qemu-img check x").status == what.status)
    #expect(theirs.out.contains("\"corruptions-fixed\": \(what.corruptionsFixed)"), "\(theirs)")
    // A second repair has nothing left to do.
    let again = MemoryBytes(bytes.bytes)
    let none = try RefcountRebuild.repair(again, .all)
    #expect(none.isEmpty && again.bytes == bytes.bytes, "\(none)")
    // What stays keeps nobody from writing.
    let write = folder.run("qemu-io -c 'write -P 9 8M 64k' -c 'read -P 9 8M 64k' x")
    #expect(write.status == 0, "\(write)")
  }

  /// What lies behind the end of a file that was cut may be copied anew; until then nobody may get those
  /// clusters.
  @Test(arguments: [RepairMode.leaks, .all], [false, true])
  func clustersBehindTheEndKeepTheirRefcounts(_ mode: RepairMode, isRebuilt: Bool) throws {
    let folder = try Folder()
    folder.run("\(Self.create) x 64M; qemu-io -c 'write -P 1 0 256k' x; truncate -s 400k x")
    if isRebuilt && mode == .all {
      folder.run(Self.poke + "poke x 0x10000 '\\0\\0\\0\\0\\0\\0\\0\\0'")
    }
    let bytes = MemoryBytes(folder.bytes("x"))
    let before = try ImageCheck.run(bytes)
    _ = try RefcountRebuild.repair(bytes, mode)
    let after = try ImageCheck.run(bytes)
    #expect(after.corruptions <= before.corruptions && after.leaks == 0)
    try folder.write(bytes.bytes, "x")
    // The clusters that are gone are 7 and 8; what QEMU adds must lie elsewhere.
    let write = folder.run("qemu-io -c 'write -P 9 8M 256k' -c 'read -P 9 8M 256k' x")
    #expect(write.status == 0, "\(write)")
    #expect(folder.run("qemu-io -c 'write -P 3 128k 128k' -c 'read -P 9 8M 256k' x").status == 0)
    #expect(folder.run("qemu-io -c 'read -P 9 8M 256k' -c 'read -P 3 128k 128k' x").status == 0)
  }

  /// An entry leads behind the end, to a cluster that the refcounts call free.
  @Test func whatIsLostBehindTheEndIsNotHandedOut() throws {
    let folder = try Folder()
    folder.run(
      Self.poke
        + """
        \(Self.create) x 64M; qemu-io -c 'write -P 1 0 128k' x
        poke x 0x40008 '\\x80\\0\\0\\0\\0\\x90\\0\\0'
        """)
    let bytes = MemoryBytes(folder.bytes("x"))
    _ = try RefcountRebuild.repair(bytes, .all)
    let again = MemoryBytes(bytes.bytes)
    #expect(try RefcountRebuild.repair(again, .all).isEmpty && again.bytes == bytes.bytes)
    try folder.write(bytes.bytes, "x")
    // The old entry's cluster, 0x90, is among those that 20 MiB would take.
    let writes = folder.run("qemu-io -c 'write -P 9 8M 20M' -c 'write -P 3 64k 64k' x")
    #expect(writes.status == 0, "\(writes)")
    let reads = folder.run("qemu-io -c 'read -P 9 8M 20M' -c 'read -P 3 64k 64k' x")
    #expect(reads.status == 0 && !reads.out.contains("failed"), "\(reads)")
  }

  /// An entry leads further behind the end than a repair keeps count: what has a refcount there keeps it.
  @Test(arguments: [RepairMode.leaks, .all]) func whatIsFarBehindTheEndIsNotFreed(
    _ mode: RepairMode
  ) throws {
    let folder = try Folder()
    folder.run(
      Self.poke
        + """
        \(Self.create) x 64M; qemu-io -c 'write -P 1 0 128k' x
        poke x 0x40008 '\\x80\\0\\0\\0\\x70\\0\\0\\0'; poke x 0x2e001 '\\1'
        """)
    let bytes = MemoryBytes(folder.bytes("x"))
    _ = try RefcountRebuild.repair(bytes, mode)
    #expect(bytes.bytes[0x2e001] == 1, "the refcount of cluster 0x7000")
  }

  /// Found by fuzzing: an entry leads into the L2 table that it is in, whose flags a rebuild would change.
  @Test func aTableThatIsTheGuestsDataIsNotRebuiltUnasked() throws {
    let folder = try Folder()
    folder.run(
      Self.poke
        + """
        \(Self.create) x 64M; qemu-io -c 'write -P 1 0 128k' x
        poke x 0x40008 '\\x80\\0\\0\\0\\0\\x04\\0\\0'; poke x 79 '\\1'
        """)
    let bytes = MemoryBytes(folder.bytes("x"))
    let before = bytes.bytes
    #expect {
      _ = try RefcountRebuild.run(bytes)
    } throws: { error in
      guard case ToolError.notOnlyRefcounts(.doubleUse(let cluster, _, _)) = error else {
        return false
      }
      return cluster == HostOffset(0x40000)
    }
    #expect(bytes.bytes == before)
    // Whoever asks for the repair gets it, as from QEMU.
    #expect(try !RefcountRebuild.repair(bytes, .all).isEmpty)
    try folder.write(bytes.bytes, "x")
    #expect(folder.run("qemu-img check x").status == 0)
  }

  /// Of clusters of 512 bytes, a refcount block counts 256: those of the lost half are lost, too.
  @Test func clustersBehindTheEndGetBlocksOfTheirOwn() throws {
    let folder = try Folder()
    folder.run(
      "qemu-img create -q -f qcow2 -o cluster_size=512 x 64M; qemu-io -c 'write -P 1 0 256k' x; "
        + "truncate -s 100k x")
    // No refcounts: they are counted anew.
    folder.run(Self.poke + "poke x 512 '\\0\\0\\0\\0\\0\\0\\0\\0'")
    let bytes = MemoryBytes(folder.bytes("x"))
    _ = try RefcountRebuild.repair(bytes, .all)
    try folder.write(bytes.bytes, "x")
    // What QEMU adds lies elsewhere: it is not freed with what the old entries lead to.
    let writes = folder.run(
      "qemu-io -c 'write -P 9 8M 256k' -c 'write -P 3 0 256k' -c 'write -P 5 16M 256k' x")
    #expect(writes.status == 0, "\(writes)")
    let reads = folder.run(
      "qemu-io -c 'read -P 9 8M 256k' -c 'read -P 3 0 256k' -c 'read -P 5 16M 256k' x")
    #expect(reads.status == 0, "\(reads)")
  }

  @Test(arguments: [0, 8, 1032, 2000]) func snapshotEntriesGetTheirExtraData(_ length: Int) throws {
    let folder = try Folder()
    folder.run(
      """
      \(Self.create) x 64M; qemu-io -c 'write -P 1 0 512' x; qemu-img snapshot -c foo x
      qemu-io -c 'write -P 2 0 512' x; qemu-img snapshot -c bar x
      truncate -s %64k x
      """)
    var image = ImageEditor(folder.bytes("x"))
    image.resizeExtraData(of: 0, to: length)
    try folder.write(image.bytes, "x")
    folder.run("cp x y")
    let bytes = MemoryBytes(image.bytes)
    let changes = try RefcountRebuild.repair(bytes, .all)
    var after = try ImageCheck.run(bytes)
    after.note(changes)
    #expect(after.exitCode == 0)
    #expect(after.corruptionsFixed == 1)
    #expect(after.leaksFixed == 0)
    try folder.write(bytes.bytes, "x")
    #expect(folder.run("qemu-img check -r all y").status == 0)
    #expect(folder.run("qemu-img check x").status == 0)
    // Byte for byte QEMU's new table.
    let ours = ImageEditor(bytes.bytes)
    let theirs = ImageEditor(folder.bytes("y"))
    let size = 4096
    func table(_ image: ImageEditor) -> [UInt8] {
      Array((image.bytes + [UInt8](repeating: 0, count: size))[image.snapshots...].prefix(size))
    }
    let isSame = table(ours) == table(theirs)
    #expect(isSame)
    let list = "qemu-img snapshot -l x; qemu-io -r -c 'read -P 2 0 512' x >&2"
    #expect(folder.run(list).status == 0)
    #expect(folder.run(list).out == folder.run("qemu-img snapshot -l y").out)
  }

  @Test func aCrashAtAnyStepOfARepairLosesNothing() throws {
    let seed = testSeed("repair crash", fallback: .random(in: 0...UInt64.max))
    var random = SeededGenerator(seed: seed)
    let folder = try Folder()
    folder.run(
      """
      \(Self.create) -o cluster_size=4k x 8M; qemu-io -c 'write -P 1 0 64k' -c 'write 64k 4k' x
      qemu-img snapshot -c foo x; qemu-io -c 'write -P 2 0 64k' -c 'discard 64k 4k' x
      truncate -s %4k x
      """)
    var image = ImageEditor(folder.bytes("x"))
    image.resizeExtraData(of: 0, to: 8)
    image.set(image.l2(0) + 16 * 8, 8, 1 << 63 | 0x2a01)  // a zero cluster, not aligned
    image.change(image.dataEntry()) { $0 | 4 }
    image.setRefcount(image.l2(0), 3)
    let whole = CrashBytes(image.bytes)
    let changes = try RefcountRebuild.repair(whole, .all)
    #expect(changes.entries == 2 && changes.snapshots == 1 && changes.lowered >= 1, "\(changes)")
    #expect(try ImageCheck.run(MemoryBytes(whole.current)).exitCode == 0)
    let view = GuestView(whole.current)
    for limit in 1..<whole.steps {
      let crashing = CrashBytes(image.bytes, limit: limit)
      #expect(throws: ToolError.self) { _ = try RefcountRebuild.repair(crashing, .all) }
      let again = MemoryBytes(crashing.cut(&random))
      _ = try RefcountRebuild.repair(again, .all)
      var findings: [String] = []
      let result = try ImageCheck.run(again) { findings.append($0.message) }
      #expect(result.exitCode == 0, "cut at \(limit): \(findings.prefix(3))")
      #expect(GuestView(again.bytes) == view, "cut at \(limit)")
      #expect(ImageEditor(again.bytes).get(72, 8) == 0)
    }
  }

  /// A table that cannot be found may lead to all that looks leaked.
  @Test func nothingIsFreedWhileATableIsLost() throws {
    let folder = try Folder()
    folder.run(
      "\(Self.create) x 2G; qemu-io -c 'write -P 1 0 256k' -c 'write -P 2 1G 256k' x")
    var image = ImageEditor(folder.bytes("x"))
    let lost = image.get(image.l1 + 16, 8)
    image.change(image.l1 + 16) { $0 + 512 }
    for hasTable in [true, false] {
      if !hasTable { image.set(image.refcountTable, 8, 0) }
      let bytes = MemoryBytes(image.bytes)
      _ = try RefcountRebuild.repair(bytes, .all)
      var mended = ImageEditor(bytes.bytes)
      let result = try ImageCheck.run(bytes)
      #expect(result.exitCode == 2 && result.leaks >= 3, "\(result)")
      // Somebody who finds the table again finds its data as well.
      mended.set(mended.l1 + 16, 8, lost)
      try folder.write(mended.bytes, "y")
      let read = folder.run("qemu-io -c 'read -P 1 0 256k' -c 'read -P 2 1G 256k' y")
      #expect(read.status == 0, "\(read)")
      let again = MemoryBytes(mended.bytes)
      _ = try RefcountRebuild.repair(again, .all)
      #expect(try ImageCheck.run(again).exitCode == 0)
    }
  }

  @Test(arguments: ["leaks", "all"]) func repairClearsUnknownAutoclearBitsFirst(_ mode: String)
    throws
  {
    let folder = try Folder()
    folder.run(
      Self.poke
        + "\(Self.create) x 64M; qemu-img bitmap --add x b; poke x 88 '\\x80'; poke x 0x2000c '\\0\\1'"
    )
    let bytes = MemoryBytes(folder.bytes("x"))
    let changes = try RefcountRebuild.repair(bytes, mode == "all" ? .all : .leaks)
    #expect(ImageEditor(bytes.bytes).get(88, 8) == 1, "known bits stay, unknown ones go")
    _ = changes
  }
}

/// Findings in the order they came.
final class Findings {
  private(set) var all: [CheckFinding] = []
  func add(_ finding: CheckFinding) { all.append(finding) }
}
