import TestTools
import Testing

@testable import QCOW2Codec

/// The parts of LUKS, each by itself.
@Suite struct LUKSPartTests {
  /// RFC 6070 for SHA-1; RFC 7914's text and the usual vectors for SHA-256 and SHA-512.
  @Test(arguments: [
    (HashAlgorithm.sha1, UInt32(1), "0c60c80f961f0e71f3a9b524af6012062fe037a6"),
    (.sha1, 4096, "4b007901b765489abead49d926f721d065a429c1"),
    (.sha256, 1, "120fb6cffcf8b32c43e7225256c4f837a86548c92ccc35480805987cb70be17b"),
    (.sha256, 4096, "c5e478d59288c841aa530db6845c4c8d962893a001ce4e11a4963873aa98134a"),
    (
      .sha512, 1,
      """
      867f70cf1ade02cff3752599a3a53dc4af34c7a669815ae5d513554e1c8cf252
      c02d470a285a0501bad999bfe943c08f050235d7d68b1da55e63f73b60a57fce
      """
    ),
  ])
  func derivedKeys(hash: HashAlgorithm, iterations: UInt32, expected: String) throws {
    let wanted = hex(expected)
    let key = try KeyDerivation.derive(
      from: Secret("password"), salt: Array("salt".utf8), iterations: iterations, hash: hash,
      count: wanted.count)
    #expect(key.revealed == wanted)
  }

  @Test(arguments: HashAlgorithm.allCases, [16, 24, 32, 48, 64])
  func aSplitKeyMergesAgain(hash: HashAlgorithm, length: Int) throws {
    var random = SeededGenerator(seed: 21)
    let key = Secret(random.bytes(length))
    let split = try AntiForensic.split(key, stripes: 7, hash: hash)
    #expect(split.count == 7 * length)
    #expect(try AntiForensic.merge(split, length: length, hash: hash).revealed == key.revealed)
    // One changed bit anywhere loses the key.
    var changed = split.revealed
    changed[length + 3] ^= 1
    let wrong = try AntiForensic.merge(Secret(changed), length: length, hash: hash)
    #expect(wrong.revealed != key.revealed)
  }

  @Test func iterationsFollowTheTimeAskedFor() throws {
    func count(_ milliseconds: Int) throws -> UInt32 {
      try KeyDerivation.iterations(
        taking: milliseconds, hash: .sha256, count: 32, minimum: 1000, maximum: 1 << 28)
    }
    #expect(try count(0) == 1000)
    let (short, long) = (try count(100), try count(3000))
    #expect(short > 1000)
    #expect(long > short)
  }

  @Test func headersHaveTheLengthsOfQEMUs() {
    var options = LUKSFormat.Options()
    #expect(LUKSFormat.areaLength(options) == 2_068_480)
    (options.cipher, options.mode) = (.aes128, .cbc)
    #expect(LUKSFormat.areaLength(options) == 528_384)
  }
}
