import Glibc
import TestTools
import Testing

/// `qublk vmstate`, with QEMU's tools as the judge of what it leaves.
@Suite(.enabled(if: hasQEMU, "needs qemu-img and qemu-io")) struct VMStateCommandTests {
  private static let shapes = [
    "cluster_size=4k", "cluster_size=64k,compat=0.10", "cluster_size=16k,extended_l2=on",
    "cluster_size=512,refcount_bits=64",
  ]

  /// An image whose disk is all one byte, with two snapshots.
  private func image(_ options: String, in directory: TemporaryDirectory) throws -> String {
    let path = directory.file("image")
    try mustRunQEMU(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, "3M"])
    try mustRunQEMUIO(["-c", "write -P 1 0 3M", path])
    for name in ["one", "two"] { try mustRunQEMU(["qemu-img", "snapshot", "-c", name, path]) }
    return path
  }

  private func ok(_ words: String..., sourceLocation: SourceLocation = #_sourceLocation) throws {
    let outcome = try Subprocess(qublkPath(), words).finish()
    #expect(
      outcome.status == 0 && outcome.errors.isEmpty, "\(outcome)", sourceLocation: sourceLocation)
  }

  @Test(arguments: shapes) func theStateThatIsImportedIsWhatQEMULoads(_ options: String) throws {
    let directory = try TemporaryDirectory()
    let path = try image(options, in: directory)
    // 300 KiB of one byte, 200 KiB of zeros, and an end inside a sector.
    let state = Array(repeating: UInt8(7), count: 300 << 10) + Array(repeating: 0, count: 200 << 10)
    let file = try directory.file("state", state + Array(repeating: 9, count: 1000))
    try ok("vmstate", path, "import", "one", file)
    try mustRunQEMU(["qemu-img", "check", "-q", path])
    let list = try mustRunQEMU(["qemu-img", "snapshot", "-l", path])
    #expect(list.contains("501 KiB") && list.contains("one"))
    let copy = directory.file("copy")
    try ok("vmstate", path, "export", "1", copy)
    #expect(try contents(copy) == contents(file))
    #expect(try mustRun("stat", "-c", "%a", copy) == "600\n")
    let none = try qublk("vmstate", path, "export", "two", copy)
    #expect(none.status == 1 && none.errors.contains("snapshot 2 has no VM state"))
    #expect(try contents(copy) == contents(file), "a file that was there stays")
    try mustRunQEMU(["qemu-img", "snapshot", "-a", "one", path])
    try mustRunQEMUIO([
      "-c", "read -P 1 0 3M", "-c", "read -b -P 7 0 300k", "-c", "read -b -P 0 300k 200k",
      "-c", "read -b -P 9 500k 512", path,
    ])
  }

  @Test(arguments: shapes) func theStateThatQEMUKeepsIsExported(_ options: String) throws {
    let directory = try TemporaryDirectory()
    let path = try image(options, in: directory)
    try mustRunQEMUIO(["-c", "write -b -P 5 0 200k", path])
    try mustRunQEMU(["qemu-img", "snapshot", "-c", "three", path])
    // qemu-img writes no size for it.
    let file = try directory.file("state", Array(repeating: 6, count: 100_000))
    try ok("vmstate", path, "import", "three", file)
    try mustRunQEMU(["qemu-img", "check", "-q", path])
    try mustRunQEMUIO(["-c", "read -b -P 5 0 200k", path])
    let empty = try directory.file("empty", [])
    try ok("vmstate", path, "import", "three", empty)
    #expect(try qublk("vmstate", path, "list").output == "")
    try mustRunQEMU(["qemu-img", "check", "-q", path])
    try mustRunQEMU(["qemu-img", "snapshot", "-d", "three", path])
    try mustRunQEMU(["qemu-img", "check", "-q", path])
  }

  @Test func theListHasWhatHasState() throws {
    let directory = try TemporaryDirectory()
    let path = try image("cluster_size=4k", in: directory)
    #expect(try qublk("vmstate", path, "list").output == "")
    #expect(try qublk("vmstate", "--output=json", path, "list").output == "[\n]\n")
    let file = try directory.file("state", Array(repeating: 6, count: 1_000_000))
    try ok("vmstate", "-q", path, "import", "two", file)
    let lines = try qublk("vmstate", path, "list").output.split(separator: "\n")
    #expect(lines.count == 3 && lines[2].hasPrefix("2       two"))
    #expect(lines[2].contains(" 977 KiB "))
    let json = try qublk("vmstate", "--output", "json", path, "list").output
    #expect(json.contains("\"vm-state-size\": 1000000") && !json.contains("\"one\""))
    let options = "driver=qcow2,file.filename=\(path)"
    #expect(try qublk("vmstate", "--image-opts", options, "list").output.contains("two"))
    let progress = try qublk("vmstate", "-p", path, "export", "two", directory.file("copy"))
    #expect(progress.status == 0 && progress.errors.contains("(100.00/100%)"))
  }

  @Test func wrongUseChangesNothing() throws {
    let directory = try TemporaryDirectory()
    let path = try image("cluster_size=4k", in: directory)
    let file = try directory.file("state", [1, 2, 3])
    let before = try contents(path)
    for (words, status, text) in [
      (["list", "x"], 64, "list takes no snapshot, and \"x\" was given"),
      (["import", "one"], 64, "import needs a snapshot and a file"),
      (["-U", "import", "one", file], 64, "-U is for list and export"),
      (["--output=json", "import", "one", file], 64, "--output is for list"),
      (["import", "three", file], 1, "no internal snapshot has the ID or name \"three\""),
      (["export", "three", file], 1, "no internal snapshot has the ID or name \"three\""),
      (["import", "one", "nosuch"], 1, "file \"nosuch\": No such file or directory (ENOENT)"),
      (["import", "one", path], 1, "it is a file of the image: give another file"),
      (["import", "one", "/dev/null"], 1, "neither a regular file nor a block device"),
    ] as [([String], Int32, String)] {
      let outcome = try Subprocess(qublkPath(), ["vmstate", path] + words).finish()
      #expect(outcome.status == status && outcome.errors.contains(text), "\(words): \(outcome)")
    }
    #expect(try contents(path) == before)
    #expect(try contents(file) == [1, 2, 3])
    let raw = try qublk("vmstate", file, "list")
    #expect(raw.status == 1 && raw.errors == "qublk: \(file): the disk is not a qcow2 image\n")
    try ok("vmstate", path, "import", "one", file)
    for target in [path, "/dev/null"] {
      let outcome = try qublk("vmstate", path, "export", "one", target)
      #expect(outcome.status == 1, "\(outcome)")
    }
    try mustRunQEMU(["qemu-img", "check", "-q", path])
  }
}
