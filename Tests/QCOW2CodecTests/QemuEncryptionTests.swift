import TestTools
import Testing

@testable import QCOW2Codec

/// What QEMU encrypts, we decrypt, and the other way round.
@Suite(.enabled(if: hasQEMU, Qemu.reason), .serialized) struct QemuEncryptionTests {
  static let vectors = ["plain", "plain64", "essiv"]

  private func image(_ path: String, _ format: String) -> String {
    "driver=qcow2,file.driver=file,file.filename=\(path),encrypt.format=\(format),encrypt.key-secret=s"
  }

  static let ciphers = [128, 192, 256].flatMap { bits in CipherMode.allCases.map { (bits, $0) } }

  @Test(arguments: share(of: ciphers))
  func ourKeysOpenQEMUsImages(bits: Int, mode: CipherMode) throws {
    // QEMU ends with an assertion on these: their key material is not whole sectors.
    guard bits != 192 || mode == .xts else { return }
    let scratch = try TemporaryDirectory(in: "/tmp")
    for (number, iv) in Self.vectors.enumerated() {
      let hash = HashAlgorithm.allCases[(bits / 64 + number * 3) % HashAlgorithm.allCases.count]
      let path = scratch.file("\(iv).qcow2")
      let generator = iv == "essiv" ? "essiv,encrypt.ivgen-hash-alg=sha256" : iv
      try Qemu.create(
        path, secret: "pass phrase",
        options: "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10,"
          + "encrypt.cipher-alg=aes-\(bits),encrypt.cipher-mode=\(mode.rawValue),"
          + "encrypt.ivgen-alg=\(generator),encrypt.hash-alg=\(hash.rawValue)")
      try Qemu.io(
        image(path, "luks"), secret: "pass phrase",
        ["write -P 0x5a 0x20000 64k", "write -P 0xc3 0x90000 4k"])
      let image = try HandReadImage(path)
      #expect(image.number(32, 4) == 2)
      let area = try #require(image.encryptionArea)
      let cipher = try LUKSHeaderTests.unlock(area, "pass phrase")
      #expect(cipher.header.suite.keyLength == bits / 8 * (mode == .xts ? 2 : 1))
      for (cluster, length, value) in [(2, 65536, UInt8(0x5a)), (9, 4096, 0xc3)] {
        let offset = image.hostOffset(cluster)
        let bytes = cipher.decrypted(
          Array(image.bytes[offset..<(offset + length)]), firstSector: UInt64(offset / 512))
        #expect(bytes.allSatisfy { $0 == value }, "\(bits) \(mode) \(iv) \(hash)")
      }
      #expect(throws: LUKSError.wrongPassphrase) {
        try LUKSHeaderTests.unlock(area, "pass phrasf")
      }
    }
  }

  @Test(arguments: AESKeyLength.allCases, CipherMode.allCases)
  func qemuOpensOurHeaders(cipher: AESKeyLength, mode: CipherMode) throws {
    guard cipher != .aes192 || mode == .xts else { return }  // see above
    let scratch = try TemporaryDirectory(in: "/tmp")
    for (number, iv) in [IVGenerator.plain, .plain64, .essiv(.sha256)].enumerated() {
      let hashes = HashAlgorithm.allCases
      let hash = hashes[(cipher.rawValue / 8 + number * 2) % hashes.count]
      let (area, made) = try LUKSHeaderTests.quick(cipher, mode, iv, hash: hash)
      let plain = [UInt8](repeating: 0x37, count: 65536) + [UInt8](repeating: 0x91, count: 65536)
      let path = scratch.file("\(number).luks")
      try write(area + made.encrypted(plain, firstSector: 0), to: path)
      try Qemu.io(
        "driver=luks,file.driver=file,file.filename=\(path),key-secret=s", secret: "open",
        ["read -P 0x37 0 64k", "read -P 0x91 64k 64k"])
      #expect(throws: CommandFailure.self) {
        try Qemu.io(
          "driver=luks,file.driver=file,file.filename=\(path),key-secret=s", secret: "shut",
          ["read 0 64k"])
      }
    }
  }

  @Test(arguments: ["short", "exactly 16 bytes", "rather more than 16 bytes"])
  func legacyImagesAreReadWithTheGuestsSectors(passphrase: String) throws {
    let scratch = try TemporaryDirectory(in: "/tmp")
    let path = scratch.file("aes.qcow2")
    try Qemu.create(
      path, secret: passphrase, options: "encrypt.format=aes,encrypt.key-secret=s")
    try Qemu.io(image(path, "aes"), secret: passphrase, ["write -P 0x5a 0x70000 64k"])
    let image = try HandReadImage(path)
    #expect(image.number(32, 4) == 1)
    let offset = image.hostOffset(7)
    let cipher = try LegacyAESCipher(passphrase: Secret(passphrase))
    let bytes = cipher.decrypted(
      Array(image.bytes[offset..<(offset + 65536)]), firstSector: 0x70000 / 512)
    #expect(bytes.allSatisfy { $0 == 0x5a })
  }

  @Test(arguments: [CompressionKind.zlib, .zstd])
  func qemusCompressedClustersAreRead(kind: CompressionKind) throws {
    let scratch = try TemporaryDirectory(in: "/tmp")
    let cluster = CompressionTests.mixed(65536, seed: 31)
    let (raw, path) = (scratch.file("raw"), scratch.file("packed.qcow2"))
    try write(cluster + cluster.reversed() + cluster, to: raw)
    try mustRun([
      "qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o",
      "compression_type=\(kind)", raw, path,
    ])
    let image = try HandReadImage(path)
    let codec = ClusterCodec(kind, clusterSize: 65536)
    for (number, expected) in [cluster, cluster.reversed(), cluster].enumerated() {
      #expect(try codec.decompressed(#require(image.compressed(number))) == expected)
    }
  }
}
