import TestTools
import Testing

/// What a session can do with its disk beside reading and writing.
@Suite struct IOSessionTests {
  @Test func reopeningChangesWhatMayBeDone() throws {
    try withImage { image in
      let outcome = try io(
        image, "write -q -P 1 0 64k", "reopen -r", "write -q 0 4k", "reopen -w -c none",
        "write -q -P 2 0 4k", "reopen -r -w", "read -q -P 2 0 4k", "read -q -P 1 4k 60k")
      #expect(
        outcome.errors
          == "qublk: Block node is read-only\nOnly one -r/-w option can be given\n"
          || outcome.errors.contains("Block node is read-only"))
      #expect(!outcome.output.contains("Pattern verification failed"))
    }
  }

  @Test func aFailedReopeningLeavesTheDiskOpen() throws {
    try withImage { image in
      let outcome = try io(
        image, "write -q -P 1 0 64k", "reopen -o driver=raw,nonsense=1", "read -q -P 1 0 64k")
      #expect(outcome.errors == "qublk: option \"nonsense\" is not known\n")
      #expect(outcome.output == "")
    }
  }

  @Test func whatGoesToTheOverlayIsThrownAway() throws {
    try withImage { image in
      #expect(try io(image, "write -q -P 1 0 64k").status == 0)
      let before = try contents(image)
      let outcome = try Subprocess(
        qublkPath(),
        ["io", "-s", "-c", "write -q -P 9 0 1M", "-c", "read -q -P 9 0 1M", image]
      ).finish()
      #expect(outcome.status == 0 && outcome.output == "" && outcome.errors == "")
      #expect(try contents(image) == before)
    }
  }

  @Test func discardsAreStarted() throws {
    try withImage { image in
      let outcome = try io(
        image, "write -q -P 1 0 128k", "aio_discard -q 0 64k", "aio_flush", "read -q -P 0 0 64k",
        "read -q -P 1 64k 64k")
      #expect(outcome.status == 0 && outcome.output == "")
    }
  }

  @Test(arguments: [("on", "65536"), ("unmap", "65536"), ("off", "1048576")])
  func zerosAreDetected(_ mode: String, _ expected: String) throws {
    try withImage { image in
      let outcome = try Subprocess(
        qublkPath(),
        [
          "io", "--detect-zeroes", mode, "-c", "write -q -P 1 0 64k", "-c",
          "write -q -P 0 64k 960k",
          "-c", "read -q -P 0 64k 960k", image,
        ]
      ).finish()
      #expect(outcome.status == 0 && outcome.output == "" && outcome.errors == "")
      let ranges = try qublk(
        "io", "-r", "-c", "read -q -P 1 0 64k", "-c", "read -q -P 0 64k 960k", image)
      #expect(ranges.output == "")
      // Zeros that were written as data have their places in the file.
      let data = try contents(image).count
      #expect((data >= 1 << 20) == (expected == "1048576"), "\(mode): \(data) bytes")
    }
  }

  @Test func zonesAreRefusedInWords() throws {
    try withImage { image in
      let outcome = try io(image, "zone_report 0 1")
      #expect(outcome.errors == "qublk: zoned devices are not supported\n")
    }
  }

  private func io(_ image: String, _ commands: String...) throws -> Outcome {
    try Subprocess(qublkPath(), ["io"] + commands.flatMap { ["-c", $0] } + [image]).finish()
  }

  private func withImage(_ body: (String) throws -> Void) throws {
    let directory = try TemporaryDirectory()
    let image = "\(directory.path)/disk.qcow2"
    #expect(try qublk("create", "-q", image, "8M").status == 0)
    try withExtendedLifetime(directory) { try body(image) }
  }
}
