import Glibc
import TestTools
import Testing

/// Paths, directories and command lines as they are outside of a developer's terminal.
@Suite struct PathTests {
  /// Runs a shell script with the program as $1 and a directory of its own as $2.
  private func shell(_ directory: TemporaryDirectory, _ script: String) throws -> Outcome {
    try run("sh", "-c", script, "sh", try qublkPath(), directory.path)
  }

  @Test(.enabled(if: hasQEMU)) func aDeletedCurrentDirectoryIsNothingToAnAbsolutePath() throws {
    let directory = try TemporaryDirectory()
    let image = try directory.image("a.qcow2")
    for command in ["info", "check", "io -c 'read 0 512'", "bench -c 16"] {
      let outcome = try shell(
        directory, "mkdir $2/gone && cd $2/gone && rmdir $2/gone && exec $1 \(command) \(image)")
      #expect(outcome.status == 0, "\(command): \(outcome.errors)")
    }
    let relative = try shell(
      directory,
      "mkdir $2/gone && cd $2/gone && rmdir $2/gone && exec $1 io -c 'read 0 512' a.qcow2")
    #expect(relative.status == 1)
    #expect(relative.errors.contains("a.qcow2"))
  }

  @Test(.enabled(if: hasQEMU && geteuid() == 0)) func argumentsCountWithoutProc() throws {
    let directory = try TemporaryDirectory()
    let image = try directory.image("a.qcow2")
    let outcome = try shell(
      directory,
      "exec unshare -m sh -c 'mount -t tmpfs none /proc && exec \"$0\" \"$@\"' $1 info \(image)")
    #expect(outcome.status == 0, "\(outcome.errors)")
    #expect(outcome.output.contains("file format: qcow2"), "\(outcome.output)")
  }

  @Test func anArgumentThatIsNotUTF8IsNamed() throws {
    let directory = try TemporaryDirectory()
    let outcome = try shell(directory, "exec $1 info \"$2/$(printf 'a\\377b\\\\n')\"")
    #expect(outcome.status == 64)
    #expect(
      outcome.errors
        == "qublk: argument 2 is not UTF-8: \"\(directory.path)/a\\377b\\134n\": give the file a name that "
        + "is, a symbolic link for one\n")
  }

  /// SEC-1: what an untrusted image names is not touched by looking at the image.
  @Test(
    .enabled(if: hasQEMU),
    arguments: ["info", "check", "info --output=json", "check --output=json"])
  func lookingAtAnImageOpensNothingThatItNames(_ command: String) throws {
    let directory = try TemporaryDirectory()
    let made = try shell(
      directory,
      """
      cd $2
      qemu-img create -q -f raw base.outside 1M
      qemu-img create -q -f qcow2 -o data_file=data.outside data.qcow2 1M
      qemu-img create -q -f qcow2 -b base.outside -F raw backing.qcow2
      """)
    try #require(made.succeeded, "\(made.errors)")
    for image in ["data.qcow2", "backing.qcow2"] {
      let traced = try shell(
        directory,
        "cd $2; strace -f -e trace=open,openat,openat2,io_uring_setup -o log $1 \(command) \(image) > out; cat log"
      )
      #expect(traced.output.contains("\(image)\""))
      #expect(!traced.output.contains("outside\""), "\(command) \(image)")
      // A ring could open files unseen.
      #expect(!traced.output.contains("io_uring_setup"), "\(command) \(image)")
    }
  }
}
