import Glibc
import QCOW2Codec
import TestTools
import Testing

@testable import DiskImages

/// Encrypted images with and without passphrases, against QEMU's tools [ENC-1].
@Suite(.enabled(if: hasQEMU, "needs qemu-img and qemu-io")) struct EncryptionTests {
  let scratch: Scratch

  init() throws {
    scratch = try Scratch()
    for (name, text) in [("s", "geheim"), ("t", "andres")] {
      try scratch.run("printf \(text) >\(name)")
    }
  }

  private static let fast = "encrypt.iter-time=10"

  private func create(
    _ name: String, _ format: DiskImageOptions.Encryption, secret: String = "s", rest: String = ""
  ) throws {
    let cost = format == .luks ? ",\(Self.fast)" : ""
    // QEMU's measuring of the CPU fails now and then when it takes this little time.
    try scratch.run(
      """
      for i in $(seq 50); do
        qemu-img create -q -f qcow2 --object secret,id=k,file=\(secret) \
          -o encrypt.format=\(format.rawValue),encrypt.key-secret=k\(cost) \(name) \(rest) && break
      done
      """)
  }

  /// Runs qemu-io commands on an encrypted image.
  private func io(
    _ name: String, secret: String = "s", backing: [String] = [], _ commands: String
  ) throws {
    var objects = "--object secret,id=k,file=\(secret)"
    var options = "driver=qcow2,file.filename=\(name),encrypt.key-secret=k"
    for (index, secret) in backing.enumerated() {
      objects += " --object secret,id=k\(index),file=\(secret)"
      options +=
        "," + String(repeating: "backing.", count: index + 1)
        + "encrypt.key-secret=k\(index)"
    }
    try scratch.run("qemu-io \(objects) \(commands) --image-opts '\(options)'")
  }

  private func options(
    _ name: String, readOnly: Bool = true, secrets: [String]
  ) throws -> DiskImageOptions {
    var options = scratch.options(name, readOnly: readOnly)
    options.secrets = LayerSecrets(
      inOrder: try secrets.map { try SecretSource.file(scratch.file($0)).read() })
    return options
  }

  private static let formats: [DiskImageOptions.Encryption] = [.aes, .luks]

  @Test(arguments: formats)
  func withoutAPassphraseNothingIsTouched(_ format: DiskImageOptions.Encryption) throws {
    try create("a", format, rest: "1M")
    let before = try contents(scratch.file("a"))
    for readOnly in [true, false] {
      #expect(
        openMessage(scratch.options("a", readOnly: readOnly))
          == "a: the image is encrypted: give its passphrase with --secret-file, --secret-fd or "
          + "--secret-keyring")
    }
    #expect(try contents(scratch.file("a")) == before)
    #expect(scratch.openFiles == 0)
  }

  @Test(arguments: formats)
  func bothReadWhatTheOtherWrote(_ format: DiskImageOptions.Encryption) throws {
    try create("a", format, rest: "4M")
    try io("a", "-c 'write -P 7 0 128k' -c 'write -P 8 1M 70k'")
    try withDisk(try options("a", readOnly: false, secrets: ["s"])) { guest in
      let found = try await guest.contents()
      #expect(found[..<131072].allSatisfy { $0 == 7 })
      #expect(found[(1 << 20)..<(1 << 20) + 70 * 1024].allSatisfy { $0 == 8 })
      try await guest.write(9, at: 65536 - 512, count: 1024)
      try await guest.write(10, at: 3 << 20, count: 1536)
      #expect(guest.disk.isEncrypted)
    }
    try io(
      "a",
      "-c 'read -P 7 0 65024' -c 'read -P 9 65024 1024' -c 'read -P 7 66048 65024' "
        + "-c 'read -P 10 3M 1536' -c 'read -P 0 3147264 64000' -c 'read -P 8 1M 70k'")
  }

  @Test func everyEncryptedLayerHasItsSecretFromTheTopDown() throws {
    try create("0", .luks, secret: "t", rest: "2M")
    try io("0", secret: "t", "-c 'write -P 1 0 2M'")
    try create("1", .aes, secret: "s", rest: "-b 0 -F qcow2 -u 2M")
    try scratch.run("qemu-img create -q -f qcow2 -u -b 1 -F qcow2 2 2M")
    let opened = try options("2", readOnly: false, secrets: ["s", "t"])
    try withDisk(opened) { guest in
      #expect(!guest.disk.isEncrypted)
      let found = try await guest.contents()
      #expect(found.allSatisfy { $0 == 1 })
      try await guest.write(5, at: 1536, count: 512)
    }
    // Whoever opened the image has taken the secrets.
    #expect(opened.secrets.take(0) == nil)
    #expect(
      openMessage(try options("2", secrets: ["s"]))
        == "2: backing file \"\(scratch.file("1"))\": backing file \"0\": the image is encrypted: "
        + "give its passphrase with --secret-file, --secret-fd or --secret-keyring")
    #expect(scratch.openFiles == 0)
  }

  @Test func aSecretThatNobodyNeedsIsAnError() throws {
    try scratch.run("qemu-img create -q -f qcow2 plain 1M")
    #expect(
      openMessage(try options("plain", secrets: ["s"]))
        == "plain: a secret was given that no encrypted image needs")
    #expect(
      openMessage(try options("plain", secrets: ["s", "t"]))
        == "plain: 2 secrets were given that no encrypted image needs")
  }

  @Test func anotherEncryptionThanStated() throws {
    try create("a", .aes, rest: "1M")
    var stated = try options("a", secrets: ["s"])
    stated.encryption = .luks
    #expect(openMessage(stated) == "a: encryption is \"aes\", expected \"luks\"")
    try scratch.run("qemu-img create -q -f qcow2 plain 1M")
    var plain = scratch.options("plain")
    plain.encryption = .luks
    #expect(openMessage(plain) == "plain: encryption is \"none\", expected \"luks\"")
  }

  @Test func aWrongPassphraseForLUKS() throws {
    try create("a", .luks, rest: "1M")
    let before = try contents(scratch.file("a"))
    #expect(
      openMessage(try options("a", readOnly: false, secrets: ["t"]))
        == "a: the passphrase unlocks none of the LUKS key slots")
    #expect(try contents(scratch.file("a")) == before)
    // A newline at the end is part of a passphrase, for QEMU, too.
    try scratch.run("printf 'geheim\\n' >line")
    #expect(openMessage(try options("a", secrets: ["line"])) != nil)
    try create("b", .luks, secret: "line", rest: "1M")
    #expect(openMessage(try options("b", secrets: ["line"])) == nil)
  }

  @Test func aLUKSImageWithoutAPointerToItsHeader() throws {
    try create("a", .luks, rest: "1M")
    try scratch.replace([0x05, 0x37, 0xbe, 0x77], by: [0x12, 0x34, 0x56, 0x78], in: "a")
    #expect(
      openMessage(try options("a", secrets: ["s"]))
        == "a: the image has no pointer to its LUKS header")
  }

  @Test func aLUKSHeaderThatIsNone() throws {
    try create("a", .luks, rest: "1M")
    let bytes = try contents(scratch.file("a"))
    let magic = try #require(
      (0..<(bytes.count - 6)).first {
        bytes[$0...].starts(with: Array("LUKS".utf8) + [0xba, 0xbe])
      })
    try scratch.run("printf XXXX | dd of=a bs=1 seek=\(magic) conv=notrunc status=none")
    let message = openMessage(try options("a", secrets: ["s"]))
    #expect(message?.hasPrefix("a: LUKS header: ") == true, "\(message ?? "opened")")
  }
}
