import Glibc
import TestTools
import Testing

/// Whether qemu-img can make encrypted images here.
private let canUnlock = (try? makesEncryptedImages()) ?? false

private func makesEncryptedImages() throws -> Bool {
  let directory = try TemporaryDirectory()
  let made = try Subprocess(
    "qemu-img",
    [
      "create", "-q", "-f", "qcow2", "--object", "secret,id=s,data=abc", "-o",
      "encrypt.format=aes,encrypt.key-secret=s", "\(directory.path)/a", "1M",
    ]
  ).finish()
  return made.status == 0
}

/// How the program runs: input, order, concurrency, endings.
@Suite(.enabled(if: hasQEMU, "needs qemu-img and qemu-io")) struct IORunTests {
  private let directory: TemporaryDirectory
  private let image: String

  init() throws {
    directory = try TemporaryDirectory()
    image = try directory.image("a.qcow2")
  }

  /// Runs `qublk io` with these lines as its input.
  private func io(lines: String, _ arguments: [String]) throws -> Outcome {
    let script = try directory.file("script", Array(lines.utf8))
    let words = ["-c", "exec \"$0\" io \"$@\" < \(script)", try qublkPath()] + arguments
    return try Subprocess("sh", words).finish(within: 120)
  }

  private func io(_ commands: [String], _ arguments: [String]) throws -> Outcome {
    try Subprocess(qublkPath(), ["io"] + commands.flatMap { ["-c", $0] } + arguments).finish()
  }

  @Test func linesAreReadFromStandardInput() throws {
    let outcome = try io(lines: "length\n\nbad\nread -q 0 4k\nlength", [image])
    #expect(outcome.output == "64 MiB\n64 MiB\n")
    #expect(outcome.errors == "command \"bad\" not found\n")
    #expect(outcome.status == 1)
  }

  @Test func quitEndsTheInput() throws {
    let outcome = try io(lines: "length\nquit\nlength\n", [image])
    #expect(outcome.output == "64 MiB\n")
    #expect(outcome.status == 0)
  }

  @Test func aLineWithoutEndIsSkipped() throws {
    let outcome = try io(lines: String(repeating: "x", count: 1 << 20) + "\nlength\n", [image])
    #expect(outcome.output == "64 MiB\n")
    #expect(outcome.errors == "qublk: standard input: a line is longer than 65536 bytes\n")
  }

  @Test func anyInputIsSurvived() throws {
    let seed = testSeed("io", fallback: .random(in: 0...UInt64.max))
    var random = IORandomLines(seed: seed)
    let lines = (0..<1000).map { _ in
      let line = random.next()
      // Reopened, so that there is something to ask; sizes that grow the test's time are left out.
      return line.hasPrefix("cl") || line.hasPrefix("t") ? "open \(image)" : line
    }
    let outcome = try io(lines: lines.joined(separator: "\n"), [image])
    #expect(outcome.status == 1, "seed \(random.seed): \(outcome.errors.suffix(500))")
    let checked = try run("qemu-img", "check", "-q", image)
    #expect(checked.status == 0, "seed \(random.seed): \(checked.output)\(checked.errors)")
  }

  @Test func neighboursInOneSectorAreAllWritten() throws {
    // 100 bytes each: five in every sector, hundreds in every cluster, all at once.
    let writes = (0..<500).map { "aio_write -q -P \($0 % 251 + 1) \($0 * 100) 100" }
    let reads = (0..<500).map { "read -P \($0 % 251 + 1) \($0 * 100) 100" }
    let outcome = try io(lines: (writes + ["aio_flush"]).joined(separator: "\n"), [image])
    #expect(outcome.status == 0, "\(outcome.output)\(outcome.errors)")
    let script = try directory.file("reads", Array(reads.joined(separator: "\n").utf8))
    let read = try run("sh", "-c", "qemu-io \(image) < \(script)")
    #expect(!read.output.contains("verification failed"))
    #expect(read.status == 0)
  }

  @Test func asynchronousRequestsEndBeforeTheImageIsClosed() throws {
    let writes = (0..<100).map { "aio_write -P \($0 + 1) \($0 * 300_000) 300000" }
    let outcome = try io(writes, [image])
    #expect(outcome.status == 0)
    #expect(outcome.output.split(separator: "\n").filter { $0.hasPrefix("wrote") }.count == 100)
    let reads = (0..<100).flatMap { ["-c", "read -P \($0 + 1) \($0 * 300_000) 300000"] }
    let read = try Subprocess("qemu-io", reads + [image]).finish()
    #expect(read.status == 0)
    #expect(try run("qemu-img", "check", image).status == 0)
  }

  @Test func commandsFollowFromOneImageToTheNext() throws {
    let other = try directory.image("b.qcow2", size: "1M")
    let outcome = try io(
      [
        "length", "open \(image)", "length", "open \(other)", "close", "open -r \(other)",
        "length", "write 0 4k", "close", "open -o driver=raw,file.filename=\(other) ", "close",
        "open -o driver=qcow2,file.filename=\(image)", "length", "open -o bad=1 \(image)",
      ], [])
    #expect(outcome.output == "64 MiB\n1 MiB\n64 MiB\n")
    #expect(
      outcome.errors == """
        no file open, try 'help open'
        qublk: file open already, try 'help close'
        qublk: Block node is read-only
        qublk: option "bad" is not known

        """)
    #expect(outcome.status == 1)
  }

  @Test func theImageIsLocked() throws {
    let holder = try Subprocess(qublkPath(), ["io", image])
    holder.send("length")
    let isOpen = holder.waitFor("64 MiB")
    #expect(isOpen)
    #expect(try run("qemu-io", "-c", "length", image).errors.contains("lock"))
    #expect(try io(["length"], ["-r", "-U", image]).output == "64 MiB\n")
    #expect(try io(["length"], [image]).errors.contains("image is in use"))
    _ = holder.finish()
    #expect(try run("qemu-io", "-c", "length", image).status == 0)
  }

  @Test(arguments: [
    (["/nowhere/x"], "qublk: /nowhere/x: cannot open: No such file or directory (ENOENT)\n"),
    (["-f", "vmdk", "x"], "qublk: Unknown driver 'vmdk': expected qcow2 or raw\n"),
    (["-t", "never", "x"], "qublk: Invalid cache option: never\n"),
    (["--image-opts", "driver=qcow2"], "qublk: --image-opts: \"file.filename\" is missing\n"),
    (["-o", "foo=1", "x"], "qublk: option \"foo\" is not known\n"),
  ])
  func whatCannotBeOpened(_ arguments: [String], _ errors: String) throws {
    let outcome = try io(["length"], arguments)
    #expect(outcome.status == 1)
    #expect(outcome.output == "")
    #expect(outcome.errors == errors)
  }

  @Test(
    .disabled(if: !canUnlock, "this qemu-img makes no such images"), arguments: ["aes", "luks"])
  func encryptedImagesAreUnlocked(_ method: String) throws {
    let path = "\(directory.path)/\(method)"
    let secret = ["--object", "secret,id=s,data=abc"]
    let cost = method == "luks" ? ",encrypt.iter-time=10" : ""
    let create =
      ["create", "-q", "-f", "qcow2"] + secret
      + ["-o", "encrypt.format=\(method),encrypt.key-secret=s\(cost)", path, "1M"]
    var made = try Subprocess("qemu-img", create).finish()
    // It gives up where the clock is too coarse to time the key derivation.
    for _ in 0..<40 where made.errors.contains("accurate CPU usage") {
      made = try Subprocess("qemu-img", create).finish()
    }
    try #require(made.status == 0, "\(made.errors)")
    let image = [
      "--image-opts",
      "driver=qcow2,encrypt.key-secret=s,encrypt.format=\(method),file.filename=\(path)",
    ]
    let written = try io(["write -P 3 5 100000"], secret + image)
    #expect(written.status == 0, "\(written.output)\(written.errors)")
    let read = try Subprocess(
      "qemu-io", ["-c", "read -P 3 5 100000", "-c", "read -P 0 100005 900k"] + secret + image
    ).finish()
    #expect(read.status == 0, "\(read.output)\(read.errors)")
    let locked = try io(["length"], [path])
    #expect(locked.status == 1)
    #expect(locked.output == "")
  }

  @Test func breakpointsNeedFaultInjection() throws {
    for command in ["break write_aio A", "wait_break A", "resume A", "remove_break A"] {
      let outcome = try io([command], [image])
      #expect(outcome.status == 1)
      #expect(outcome.errors.contains("fault injection"))
    }
  }

  @Test func anAbortLeavesAtWorstLeaks() throws {
    let outcome = try io(["write -P 7 0 1M", "flush", "write -P 8 4M 1M", "abort"], [image])
    #expect(outcome.status == 128 + SIGABRT)
    let checked = try run("qemu-img", "check", image)
    #expect(checked.status == 0 || checked.status == 3, "\(checked.output)")
    #expect(try run("qemu-io", "-c", "read -P 7 0 1M", image).status == 0)
  }
}
