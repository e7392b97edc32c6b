import TestTools
import Testing

@testable import QCOW2Codec

/// Known answers: NIST SP 800-38A, IEEE 1619-2007 annex B.
@Suite struct CipherVectorTests {
  private static let plain = hex(
    """
    6bc1bee22e409f96e93d7e117393172a ae2d8a571e03ac9c9eb76fac45af8e51
    30c81c46a35ce411e5fbc1191a0a52ef f69f2445df4f9b17ad2b417be66c3710
    """)
  private static let keys: [AESKeyLength: [UInt8]] = [
    .aes128: hex("2b7e151628aed2a6abf7158809cf4f3c"),
    .aes192: hex("8e73b0f7da0e6452c810f32b809079e562f8ead2522c6b7b"),
    .aes256: hex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4"),
  ]

  /// F.1, F.2 and F.5: the first 16 bytes of the cipher text.
  @Test(arguments: [
    (AESKeyLength.aes128, CipherMode.ecb, "3ad77bb40d7a3660a89ecaf32466ef97"),
    (.aes192, .ecb, "bd334f1d6e45f25ff712a214571fa5cc"),
    (.aes256, .ecb, "f3eed1bdb5d2a03c064b5a7e3db181f8"),
    (.aes128, .cbc, "7649abac8119b246cee98e9b12e9197d"),
    (.aes192, .cbc, "4f021db243bc633d7178183a9fa071e8"),
    (.aes256, .cbc, "f58c4c04d6e5f1ba779eabfb5f7bfbd6"),
    (.aes128, .ctr, "874d6191b620e3261bef6864990db6ce"),
    (.aes192, .ctr, "1abc932417521ca24f2b0459fe7e6e0b"),
    (.aes256, .ctr, "601ec313775789a5b7a7f504bbf3d228"),
  ])
  func blockModes(cipher: AESKeyLength, mode: CipherMode, expected: String) throws {
    let iv =
      mode == .ctr
      ? hex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff") : hex("000102030405060708090a0b0c0d0e0f")
    let key = try #require(Self.keys[cipher])
    var bytes = Self.plain
    for encrypts in [true, false] {
      let context = try Secret(key).withBytes { (bytes) throws(CipherError) in
        try CipherContext(cipher, mode, key: bytes, encrypts: encrypts)
      }
      if mode != .ecb { context.start(iv: iv) }
      bytes.withUnsafeMutableBytes { buffer in
        guard let base = buffer.baseAddress else { return }
        context.run(base, into: base, count: buffer.count)
      }
      if encrypts { #expect(Array(bytes.prefix(16)) == hex(expected)) }
    }
    #expect(bytes == Self.plain)
  }

  /// Vectors 4 and 10: 512 bytes, sector 0 and sector 0xff.
  @Test(arguments: [
    (
      AESKeyLength.aes128, UInt64(0),
      "27182818284590452353602874713526 31415926535897932384626433832795",
      "27a7479befa1d476489f308cd4cfa6e2 a96e4bbe3208ff25287dd3819616e89c"
    ),
    (
      AESKeyLength.aes256, UInt64(0xff),
      """
      2718281828459045235360287471352662497757247093699959574966967627
      3141592653589793238462643383279502884197169399375105820974944592
      """,
      "1c3b3a102f770386e4836c99e370cf9b ea00803f5e482357a4ae12d414a3e63b"
    ),
  ])
  func xts(
    cipher: AESKeyLength, sector: UInt64, key: String, first: String
  ) throws {
    let transform = try SectorTransform(CipherSuite(cipher, .xts, .plain64), key: Secret(hex(key)))
    let plain = (0..<512).map { UInt8($0 & 255) }
    let result = transform.encrypted(plain, firstSector: sector)
    #expect(Array(result.prefix(32)) == hex(first))
    if cipher == .aes128 {
      #expect(
        Array(result.suffix(32))
          == hex("eb4a427d1923ce3ff262735779a418f2 0a282df920147beabe421ee5319d0568"))
    }
    #expect(transform.decrypted(result, firstSector: sector) == plain)
  }

  @Test(arguments: [AESKeyLength.aes128, .aes256])
  func xtsFromSingleBlocksEqualsTheLibrarys(cipher: AESKeyLength) throws {
    var random = SeededGenerator(seed: 11)
    let key = Secret(random.bytes(cipher.rawValue * 2))
    let suite = CipherSuite(cipher, .xts, .plain64)
    let plain = random.bytes(2048)
    let library = try SectorTransform(suite, key: key)
    var blocks = suite
    blocks.composesXTS = true
    let composed = try SectorTransform(blocks, key: key)
    for sector in [0, 1, 0xffff_ffff, 1 << 40] as [UInt64] {
      let result = library.encrypted(plain, firstSector: sector)
      #expect(composed.encrypted(plain, firstSector: sector) == result)
      #expect(composed.decrypted(result, firstSector: sector) == plain)
    }
  }

  @Test func everySuiteComesBackAndEverySectorDiffers() throws {
    var random = SeededGenerator(seed: 12)
    let generators: [IVGenerator] = [.plain, .plain64, .essiv(.sha256), .essiv(.md5)]
    for cipher in AESKeyLength.allCases {
      for mode in CipherMode.allCases {
        for generator in generators {
          let suite = CipherSuite(cipher, mode, generator)
          let transform = try SectorTransform(suite, key: Secret(random.bytes(suite.keyLength)))
          let plain = [UInt8](repeating: 3, count: 1024)
          let result = transform.encrypted(plain, firstSector: 77)
          #expect(transform.decrypted(result, firstSector: 77) == plain)
          #expect(result != plain)
          #expect((result.prefix(512) == result.suffix(512)) == (mode == .ecb), "\(suite)")
          // A run is its sectors one by one.
          let second = transform.encrypted(Array(plain.suffix(512)), firstSector: 78)
          #expect(Array(result.suffix(512)) == second, "\(suite)")
        }
      }
    }
  }

  @Test func plainVectorsHave32BitsAndPlain64VectorsMore() throws {
    let key = Secret([UInt8](repeating: 1, count: 16))
    let bytes = [UInt8](repeating: 0, count: 512)
    let far: UInt64 = 1 << 32 + 5
    for (generator, areEqual) in [(IVGenerator.plain, true), (.plain64, false)] {
      let transform = try SectorTransform(CipherSuite(.aes128, .cbc, generator), key: key)
      let near = transform.encrypted(bytes, firstSector: far & 0xffff_ffff)
      #expect((near == transform.encrypted(bytes, firstSector: far)) == areEqual)
    }
  }

  @Test func unfitKeysAndVectorsAreRefused() throws {
    #expect(
      throws: CipherError.keyLength(algorithm: "AES-256-XTS", found: 32, expected: 64)
    ) {
      try SectorTransform(
        CipherSuite(.aes256, .xts, .plain64), key: Secret([UInt8](repeating: 1, count: 32)))
    }
    #expect(throws: CipherError.self) {
      try SectorTransform(
        CipherSuite(.aes256, .cbc, .essiv(.sha1)), key: Secret([UInt8](repeating: 1, count: 32)))
    }
  }

  @Test func manyThreadsUseOneCipher() async throws {
    var random = SeededGenerator(seed: 13)
    let transform = try SectorTransform(
      CipherSuite(.aes256, .xts, .plain64), key: Secret(random.bytes(64)))
    let plain = random.bytes(4096)
    let expected = (0..<8).map { transform.encrypted(plain, firstSector: UInt64($0)) }
    await withTaskGroup(of: Bool.self) { group in
      for worker in 0..<8 {
        group.addTask {
          (0..<500).allSatisfy { turn in
            let sector = (worker + turn) % 8
            return transform.encrypted(plain, firstSector: UInt64(sector)) == expected[sector]
              && transform.decrypted(expected[sector], firstSector: UInt64(sector)) == plain
          }
        }
      }
      for await isRight in group { #expect(isRight) }
    }
  }

  @Test func legacyKeysAreTheFirst16BytesOfThePassphrase() throws {
    let bytes = [UInt8](repeating: 9, count: 512)
    let long = try LegacyAESCipher(passphrase: Secret("0123456789abcdefXYZ"))
    let exact = try LegacyAESCipher(passphrase: Secret("0123456789abcdef"))
    let short = try LegacyAESCipher(passphrase: Secret("0123"))
    let padded = try LegacyAESCipher(passphrase: Secret(Array("0123".utf8) + [0, 0]))
    #expect(long.ivBasis == .guest)
    #expect(
      long.encrypted(bytes, firstSector: 4) == exact.encrypted(bytes, firstSector: 4))
    #expect(
      short.encrypted(bytes, firstSector: 4) == padded.encrypted(bytes, firstSector: 4))
    #expect(short.encrypted(bytes, firstSector: 4) != exact.encrypted(bytes, firstSector: 4))
  }
}

extension SectorTransform {
  func encrypted(_ bytes: [UInt8], firstSector: UInt64) -> [UInt8] {
    ran(.encrypt, bytes, firstSector)
  }

  func decrypted(_ bytes: [UInt8], firstSector: UInt64) -> [UInt8] {
    ran(.decrypt, bytes, firstSector)
  }

  private func ran(_ direction: Direction, _ bytes: [UInt8], _ sector: UInt64) -> [UInt8] {
    var target = bytes
    target.withUnsafeMutableBytes { target in
      guard let to = target.baseAddress else { return }
      run(direction, to, into: to, count: target.count, firstSector: sector)
    }
    return target
  }
}
