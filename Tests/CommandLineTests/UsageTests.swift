import TestTools
import Testing

@Suite struct UsageTests {
  @Test func versionIsPrinted() throws {
    let outcome = try qublk("--version")
    #expect(outcome.status == 0)
    // Which of them depends on the machine.
    let readers = ["zlib", "libdeflate"]
    #expect(readers.map { "0.1.0\nzlib clusters are read by \($0)\n" }.contains(outcome.output))
    #expect(outcome.errors == "")
  }

  @Test(arguments: ["add", "del", "list"])
  func everyCommandExplainsItself(_ command: String) throws {
    let outcome = try qublk(command, "--help")
    #expect(outcome.status == 0)
    #expect(outcome.output.hasPrefix("OVERVIEW: "))
    #expect(outcome.output.contains("USAGE: qublk \(command) "))
    #expect(outcome.errors == "")
  }

  @Test(arguments: [
    (["add"], "qublk: Missing expected argument '<image>'"),
    (["add", "x", "--depth", "0"], "qublk: --depth is 0, expected 1 to 4096"),
    (
      ["add", "x", "--zero-copy-slots", "0"],
      "qublk: --zero-copy-slots is 0, expected 1 to 4096"
    ),
    (["add", "x", "--poll-max-us", "1001"], "qublk: --poll-max-us is 1001, expected 0 to 1000"),
    (["add", "x", "--queues", "65"], "qublk: --queues is 65, expected 1 to 64"),
    (["add", "x", "-n", "1048576"], "qublk: --id is 1048576, expected 0 to 1048575"),
    (["add", "x", "--dirty-age", "0"], "qublk: --dirty-age is 0, expected 1 to 3600000"),
    (["add", "x", "--block-size", "1024"], "qublk: --block-size is 1024, expected 512 or 4096"),
    (
      ["add", "x", "--cache-size", "1k"],
      "qublk: --cache-size is 1024 bytes, expected at least 65536"
    ),
    (
      ["add", "x", "--zero-copy", "maybe"],
      "qublk: The value 'maybe' is invalid for '--zero-copy <zero-copy>'. "
        + "Please provide one of 'auto', 'on' or 'off'."
    ),
    (["add", ""], "qublk: the image's path is empty"),
    (
      ["add", "-f", "null", "--size", "1G", "--snapshot", "a"],
      "qublk: --snapshot needs --format qcow2"
    ),
    (
      ["add", "-f", "null", "--size", "1G", "--secret-fd", "0"],
      "qublk: a passphrase needs --format qcow2"
    ),
    (["add", "-f", "raw", "--data-file", "x", "y"], "qublk: --data-file needs --format qcow2"),
    (["add", "-f", "raw", "--cache-size", "1M", "y"], "qublk: --cache-size needs --format qcow2"),
    (["del"], "qublk: name a device, or add --all"),
    (["del", "--all", "3"], "qublk: --all and named devices exclude each other"),
    (
      ["del", "sda"],
      "qublk: \"sda\" is not a device: expected ID, ublkbID, /dev/ublkbID, or an image that is "
        + "attached"
    ),
    (
      ["del", "/dev/ublkb0p1"],
      "qublk: \"/dev/ublkb0p1\" is a partition: name its device, /dev/ublkb0"
    ),
    (
      ["stats", "/dev/null"],
      "qublk: \"/dev/null\" is not the image of a device: \"qublk list\" shows which are attached"
    ),
    (["nonsense"], "qublk: unknown subcommand \"nonsense\": \"qublk --help\" lists them all"),
    (["help", "chekc"], "qublk: unknown subcommand \"chekc\": did you mean \"check\"?"),
    (["add", "--ro", "x"], "qublk: add: unknown option \"--ro\": did you mean \"--read-only\"?"),
    (["add", "--id"], "qublk: option \"--id\" needs a value"),
    (["add", "x", "--dirty-age", "-1"], "qublk: --dirty-age is -1, expected 1 to 3600000"),
  ])
  func aWrongUseEndsWith64AndSaysWhy(_ arguments: [String], _ message: String) throws {
    let outcome = try Subprocess(qublkPath(), arguments).finish()
    #expect(outcome.status == 64)
    #expect(outcome.output == "")
    #expect(outcome.errors.split(separator: "\n").first.map(String.init) == message)
  }

  @Test(.enabled(if: !hasDriver, "there is a ublk driver, and perhaps devices"))
  func noDevicesAreAnEmptyList() throws {
    #expect(try qublk("list").output == "")
    #expect(try qublk("list", "--json").output == "[]\n")
    #expect(try qublk("del", "--all").status == 0)
  }

  @Test func aDeviceThatIsNotThereIsAnError() throws {
    let outcome = try qublk("del", "/dev/ublkb1048575")
    #expect(outcome.status == 1)
    #expect(outcome.errors == "qublk: ublkb1048575: no such device\n")
  }
}
