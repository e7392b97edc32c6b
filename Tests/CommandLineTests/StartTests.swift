import Glibc
import TestTools
import Testing

/// Starts that fail: each ends soon, with nothing on standard output and one line of reason.
@Suite struct StartTests {
  /// 2 s is what a user may wait; this allows for a machine that runs every other test meanwhile.
  private static let soon = 20.0

  private func expectFailure(
    _ outcome: Outcome, _ errors: String, sourceLocation: SourceLocation = #_sourceLocation
  ) {
    #expect(outcome.status == 1, sourceLocation: sourceLocation)
    #expect(outcome.output == "", sourceLocation: sourceLocation)
    #expect(outcome.errors == errors, sourceLocation: sourceLocation)
    #expect(outcome.seconds < Self.soon, sourceLocation: sourceLocation)
  }

  @Test func aMissingImage() throws {
    expectFailure(
      try qublk("add", "/nowhere/x.qcow2"),
      "qublk: /nowhere/x.qcow2: cannot open: No such file or directory (ENOENT)\n")
  }

  @Test(arguments: [[], ["--foreground"]])
  func aFileThatIsNoImage(_ options: [String]) throws {
    let directory = try TemporaryDirectory()
    let file = try directory.file("bad", Array(repeating: 0, count: 4096))
    expectFailure(
      try Subprocess(qublkPath(), ["add", file] + options).finish(),
      "qublk: \(file): not a qcow2 image: magic is 0x0, expected 0x514649fb\n")
  }

  @Test func theShellGetsOnWithoutWaitingForADaemon() throws {
    let directory = try TemporaryDirectory()
    let file = try directory.file("bad", Array(repeating: 0, count: 4096))
    let program = try qublkPath()
    let outcome = try run(
      "sh", "-c", "out=$(\(program) add \(file) 2>/dev/null); echo \"$? <$out>\"")
    #expect(outcome.output == "1 <>\n")
    #expect(outcome.seconds < Self.soon)
  }

  @Test func aCharacterDevice() throws {
    expectFailure(
      try qublk("add", "/dev/zero"),
      "qublk: /dev/zero: neither a regular file nor a block device\n")
  }

  @Test func aFIFOIsRefusedAtOnce() throws {
    let directory = try TemporaryDirectory()
    let path = "\(directory.path)/fifo"
    try #require(mkfifo(path, 0o600) == 0)
    expectFailure(
      try qublk("add", path), "qublk: \(path): neither a regular file nor a block device\n")
  }

  @Test(
    .enabled(if: !hasDriver, "there is a ublk driver"),
    .enabled(if: hasQEMU, "needs qemu-img"), arguments: [[], ["--foreground"]])
  func aMachineWithoutTheDriver(_ options: [String]) throws {
    let directory = try TemporaryDirectory()
    let image = try directory.image("a.qcow2")
    expectFailure(
      try Subprocess(qublkPath(), ["add", image] + options).finish(),
      "qublk: /dev/ublk-control: No such file or directory (ENOENT): "
        + "load the driver with \"modprobe ublk_drv\"\n")
    let after = try run("qemu-io", "-c", "write 0 4k", image)
    #expect(after.status == 0, "the lock is gone with the daemon: \(after.errors)")
  }
}
