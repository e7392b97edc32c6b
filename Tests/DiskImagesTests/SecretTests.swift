import BlockCore
import Glibc
import QCOW2Codec
import TestTools
import Testing

@testable import DiskImages

/// Where passphrases come from [SEC-8].
@Suite struct SecretTests {
  let scratch: Scratch

  init() throws { scratch = try Scratch() }

  private func secret(_ text: String) throws(SecretError.Problem) -> Secret {
    let bytes = Array(text.utf8)
    return try Secret(count: bytes.count) { (target) throws(SecretError.Problem) in
      target.copyBytes(from: bytes)
    }
  }

  private func text(_ secret: Secret) -> String {
    secret.withBytes { String(decoding: $0, as: UTF8.self) }
  }

  private func message(_ source: SecretSource) -> String? {
    do throws(SecretError) {
      _ = try source.read()
      return nil
    } catch { return error.message }
  }

  @Test func aFileCountsToItsLastByte() throws {
    try scratch.run("printf 'geheim\\n' >s")
    #expect(try text(SecretSource.file(scratch.file("s")).read()) == "geheim\n")
  }

  @Test func aPipeIsReadToItsEnd() throws {
    var ends: [Int32] = [-1, -1]
    try #require(pipe(&ends) == 0)
    try #require(write(ends[1], "ge", 2) == 2)
    try #require(write(ends[1], "heim", 4) == 4)
    close(ends[1])
    #expect(try text(SecretSource.descriptor(ends[0]).read()) == "geheim")
    close(ends[0])
  }

  @Test func whatIsNoPassphrase() throws {
    try scratch.run(": >empty; head -c 1048577 /dev/zero >long; head -c 1048576 /dev/zero >most")
    #expect(
      message(.file("/nowhere"))
        == "/nowhere: cannot open the secret: No such file or directory (ENOENT)")
    #expect(
      message(.file(scratch.file("empty"))) == "\(scratch.file("empty")): the secret is empty")
    #expect(
      message(.file(scratch.file("long")))
        == "\(scratch.file("long")): the secret is longer than 1048576 bytes")
    #expect(message(.file(scratch.file("most"))) == nil)
    #expect(
      message(.descriptor(12345))
        == "file descriptor 12345: cannot read the secret: Bad file descriptor (EBADF)")
    #expect(
      message(.keyring("no such key"))?.hasPrefix(
        "key \"no such key\": cannot open the secret: ") == true)
  }

  @Test func base64() throws {
    func decoded(_ encoded: String) throws(SecretError.Problem) -> String {
      text(try Base64.decode(try secret(encoded)))
    }
    for plain in ["", "g", "ge", "geh", "gehe", "geheim ünd so"] {
      let encoded = try mustShell("printf '%s' '\(plain)' | base64")
      #expect(try decoded(encoded) == plain)
    }
    #expect(try decoded("Z2\n Vo") == "geh")
    for wrong in ["Z", "Z2", "Z2V", "Z2V=b", "Z===", "Z2V-", "====", "Z2Vo="] {
      #expect(throws: SecretError.Problem.notBase64, "\(wrong)") { try decoded(wrong) }
    }
  }

  @Test func layersAreServedInOrderOrByNumberAndEachOnce() throws {
    let secrets = try ["a", "b"].map { try secret($0) }
    let ordered = LayerSecrets(inOrder: secrets)
    #expect(ordered.take(1).map(text) == "a")
    #expect(ordered.take(2).map(text) == "b")
    #expect(ordered.take(3) == nil)
    let numbered = LayerSecrets(byLayer: [0: secrets[0], 2: secrets[1]])
    #expect(numbered.take(1) == nil)
    #expect(numbered.take(2).map(text) == "b")
    #expect(numbered.dropRest() == 1)
    #expect(numbered.take(0) == nil)
  }
}
