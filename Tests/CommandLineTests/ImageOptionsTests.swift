import CPlatform
import Glibc
import TestTools
import Testing

/// Options for what images refer to, as whole messages of the commands.
@Suite(.enabled(if: hasQEMU, "needs qemu-img and qemu-io")) struct ImageOptionsTests {
  let directory: TemporaryDirectory

  init() throws { directory = try TemporaryDirectory() }

  /// Runs a line of sh in the directory.
  @discardableResult
  private func sh(_ line: String) throws -> Outcome {
    let program = try qublkPath()
    return try run("sh", "-c", "cd \(directory.path) && qublk=\(program); \(line)")
  }

  private func mustSh(_ line: String) throws {
    let outcome = try sh(line)
    try #require(outcome.status == 0, "\(line): \(outcome.errors)")
  }

  /// What `add` says in the end: where there is no driver, that is the last thing that can fail.
  private static let noDriver =
    "qublk: /dev/ublk-control: No such file or directory (ENOENT): "
    + "load the driver with \"modprobe ublk_drv\"\n"

  @Test(.enabled(if: !hasDriver, "there is a ublk driver"))
  func theDaemonFindsWhatIsNamedRelatively() throws {
    try mustSh(
      """
      mkdir sub && qemu-img create -q -f qcow2 sub/base 1M &&
      (cd sub && qemu-img create -q -f qcow2 -b base -F qcow2 top) && ln -s sub link &&
      qemu-img create -q -f raw data 1M &&
      qemu-img create -q -f qcow2 -o data_file=data split 1M
      """)
    for words in ["link/top", "--backing-policy ./sub link/top", "--data-file ./data split"] {
      let outcome = try sh("$qublk add \(words)")
      #expect(outcome.errors == Self.noDriver, "\(words)")
    }
    // The data file's name counts from the directory in which the daemon was started.
    #expect(try sh("$qublk add split").errors == Self.noDriver)
    #expect(
      try sh("cd sub; $qublk add ../split").errors
        == "qublk: ../split: data file \"data\": cannot open: No such file or directory (ENOENT): "
        + "the name counts from the current directory\n")
    let refused = try sh("$qublk add --backing-policy deny link/top")
    let base = try sh("realpath sub/base").output.dropLast()
    #expect(
      refused.errors
        == "qublk: link/top: backing file \"base\": \(base) is not allowed by --backing-policy\n")
    try mustSh("rm -r sub link")
  }

  @Test func backingOptionsThatAreWrong() throws {
    #expect(
      try qublk("add", "--backing-format", "vmdk", "x").errors.hasPrefix(
        "qublk: The value 'vmdk' is invalid for '--backing-format <backing-format>'. "
          + "Please provide one of 'raw' and 'qcow2'.\n"))
    let image = try directory.image("a")
    #expect(
      try qublk("add", "--backing-policy", "some", image).errors.hasPrefix(
        "qublk: --backing-policy: \"some\" is none of deny, same-directory, any, "
          + "or a path with a slash\n"))
    #expect(
      try qublk("add", "--data-file", "/nowhere", image).errors
        == "qublk: \(image): the image has no external data file: leave --data-file out\n")
  }

  @Test func secretsThatAreWrong() throws {
    let image = try directory.image("a")
    let secret = try directory.file("s", Array("geheim".utf8))
    #expect(
      try qublk("add", "--secret-file", secret, "--secret-fd", "0", image).errors.hasPrefix(
        "qublk: --secret-file, --secret-fd and --secret-keyring cannot be combined"))
    #expect(
      try qublk("add", "--secret-file", "/nowhere", image).errors
        == "qublk: /nowhere: cannot open the secret: No such file or directory (ENOENT)\n")
    #expect(
      try qublk("add", "--secret-file", secret, image).errors
        == "qublk: \(image): a secret was given that no encrypted image needs\n")
  }

  /// An AES image whose first 4 MiB are written.
  private func encrypted() throws {
    try mustSh(
      """
      printf geheim >s &&
      qemu-img create -q -f qcow2 --object secret,id=k,file=s \
        -o encrypt.format=aes,encrypt.key-secret=k a 4M &&
      qemu-io --object secret,id=k,file=s -c 'write -P 1 0 4M' \
        --image-opts driver=qcow2,file.filename=a,encrypt.key-secret=k
      """)
  }

  @Test(.enabled(if: !hasDriver, "there is a ublk driver"))
  func theDaemonGetsItsSecretEveryWay() throws {
    try encrypted()
    for words in [
      "--secret-file s a", "--secret-fd 3 a 3<s", "--secret-fd 0 a <s",
      "--foreground --secret-fd 3 a 3<s",
    ] {
      #expect(try sh("$qublk add \(words)").errors == Self.noDriver, "\(words)")
    }
    let image = "a: the image is encrypted: give its passphrase with --secret-file, --secret-fd or "
    #expect(try sh("$qublk add a").errors == "qublk: \(image)--secret-keyring\n")
  }

  @Test func benchReadsAndWritesWhatIsEncryptedWithSeveralWorkers() throws {
    try encrypted()
    for words in ["--queues 2 -c 1000", "--queues 2 -c 1000 -w --pattern 1 -t none"] {
      let outcome = try sh("$qublk bench --secret-file s \(words) a")
      #expect(outcome.status == 0 && outcome.output.contains("Run completed in"))
    }
    try mustSh(
      """
      qemu-io --object secret,id=k,file=s -c 'read -P 1 0 4M' \
        --image-opts driver=qcow2,file.filename=a,encrypt.key-secret=k | grep '4 MiB, 1 ops'
      """)
  }

  @Test func benchReadsThroughABackingChain() throws {
    try mustSh(
      """
      qemu-img create -q -f raw base 4M &&
      qemu-img create -q -f qcow2 -b base -F raw mid &&
      qemu-img create -q -f qcow2 -b mid -F qcow2 top
      """)
    let outcome = try sh("$qublk bench -c 2000 --queues 2 top")
    #expect(outcome.status == 0 && outcome.errors == "")
  }

  @Test func aSnapshotThatIsNotThere() throws {
    let image = try directory.image("a")
    let outcome = try qublk("add", "--snapshot", "s", image)
    #expect(outcome.status == 1)
    #expect(
      outcome.errors.hasPrefix("qublk: \(image): no internal snapshot has the ID or name \"s\""))
  }
}
