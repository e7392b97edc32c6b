import Glibc
import TestTools
import Testing

@testable import QCOW2Codec

/// Headers that are whole, cut, changed and hostile; iterations are few, so that many can be tried.
@Suite struct LUKSHeaderTests {
  static func quick(
    _ cipher: AESKeyLength = .aes128, _ mode: CipherMode = .cbc, _ iv: IVGenerator = .plain64,
    hash: HashAlgorithm = .sha256
  ) throws -> (area: [UInt8], cipher: LUKSCipher) {
    var options = LUKSFormat.Options()
    (options.cipher, options.mode, options.iv, options.hash) = (cipher, mode, iv, hash)
    var header = try LUKSFormat.emptyHeader(options)
    header.slots[0].iterations = 2
    let key = try Secret(count: options.suite.keyLength) { (target) throws(LUKSError) in
      try Randomness.fill(target)
    }
    return try LUKSFormat.seal(header, masterKey: key, passphrase: Secret("open"))
  }

  static func unlock(
    _ area: [UInt8], _ passphrase: String = "open", limits: LUKSLimits = LUKSLimits()
  ) throws -> LUKSCipher {
    try area.withUnsafeBytes { area in
      try LUKSCipher(unlocking: area, passphrase: Secret(passphrase), limits: limits)
    }
  }

  @Test(arguments: AESKeyLength.allCases, CipherMode.allCases)
  func aHeaderOpensWithItsPassphraseOnly(cipher: AESKeyLength, mode: CipherMode) throws {
    for (iv, hash) in [(IVGenerator.plain64, HashAlgorithm.sha1), (.essiv(.sha256), .sha512)] {
      let (area, made) = try Self.quick(cipher, mode, iv, hash: hash)
      let opened = try Self.unlock(area)
      #expect(opened.header == made.header)
      #expect(opened.ivBasis == .host)
      let bytes = [UInt8](repeating: 5, count: 4096)
      let cipherText = made.encrypted(bytes, firstSector: 99)
      #expect(opened.decrypted(cipherText, firstSector: 99) == bytes)
      #expect(throws: LUKSError.wrongPassphrase) { try Self.unlock(area, "opem") }
      #expect(throws: LUKSError.wrongPassphrase) { try Self.unlock(area, "") }
    }
  }

  @Test func creationTakesOptionsAndOpens() throws {
    var options = LUKSFormat.Options()
    options.iterationMilliseconds = 10
    let (area, made) = try LUKSFormat.create(options, passphrase: Secret("long enough"))
    #expect(area.count == LUKSFormat.areaLength(options))
    #expect(made.header.slots.map(\.isActive) == [true] + Array(repeating: false, count: 7))
    #expect(made.header.slots[0].iterations >= 1000)
    #expect(try Self.unlock(area, "long enough").header == made.header)
    options.iv = .essiv(.sha1)
    #expect(throws: LUKSError.self) {
      try LUKSFormat.create(options, passphrase: Secret("long enough"))
    }
  }

  @Test func whatQEMUCannotReadIsNotCreated() {
    var options = LUKSFormat.Options()
    (options.cipher, options.mode) = (.aes192, .cbc)
    #expect(
      throws: LUKSError.badField(
        name: "cipher", found: "aes-192 in cbc mode",
        allowed: "aes-128, aes-256, or aes-192 in xts mode")
    ) { try LUKSFormat.create(options, passphrase: Secret("x")) }
  }

  @Test func aLaterSlotOpensToo() throws {
    var options = LUKSFormat.Options()
    (options.cipher, options.mode) = (.aes128, .cbc)
    var header = try LUKSFormat.emptyHeader(options)
    header.slots[0].iterations = 1
    let key = Secret([UInt8](repeating: 8, count: 16))
    let made = try LUKSFormat.seal(header, masterKey: key, passphrase: Secret("one"))
    var (area, whole) = (made.area, made.cipher.header)
    whole.slots[7].isActive = true
    whole.slots[7].iterations = 3
    let material = try LUKSKeySlot.seal(
      key, in: whole.slots[7], of: whole, passphrase: Secret("eight"))
    area.replaceSubrange(0..<592, with: whole.encoded)
    let start = whole.slots[7].materialOffset
    area.replaceSubrange(start..<(start + material.count), with: material)
    for passphrase in ["one", "eight"] { _ = try Self.unlock(area, passphrase) }
    #expect(throws: LUKSError.wrongPassphrase) { try Self.unlock(area, "two") }
  }

  @Test func aCutHeaderIsRefused() throws {
    let area = try Self.quick().area
    for length in [0, 1, 100, 591] {
      #expect(throws: LUKSError.truncated(found: length, expected: 592)) {
        try Self.unlock(Array(area.prefix(length)))
      }
    }
    for length in [592, 4096, 4096 + 63999] {
      #expect(throws: LUKSError.self) { try Self.unlock(Array(area.prefix(length))) }
    }
    _ = try Self.unlock(Array(area.prefix(4096 + 64000)))
  }

  @Test(arguments: [
    (0, "00", "magic"), (6, "0002", "version"), (8, "736572", "cipher"),
    (40, "786570", "cipher mode"), (40, "6362632d6c6d6b00", "IV generator"),
    (40, "6362632d65737369763a786d00", "cipher mode's hash"), (72, "78", "hash"),
    (108, "00000011", "key bytes"), (108, "ffffffff", "key bytes"),
    (164, "00000000", "master key iterations"), (164, "ffffffff", "master key iterations"),
    (208, "00000000", "mark of key slot 0"), (212, "00000000", "iterations of key slot 0"),
    (212, "ffffffff", "iterations of key slot 0"),
    (248, "00000000", "key material sector of slot 0"),
    (248, "ffffffff", "key material sector of slot 0"),
    (104, "00000000", "key material sector of slot 0"),
    (252, "00000000", "stripes of key slot 0"), (252, "ffffffff", "stripes of key slot 0"),
  ])
  func aBrokenFieldIsNamed(offset: Int, bytes: String, name: String) throws {
    var area = try Self.quick().area
    area.replaceSubrange(offset..<(offset + hex(bytes).count), with: hex(bytes))
    let error = #expect(throws: LUKSError.self) { try Self.unlock(area) }
    guard case .badField(let found, _, _) = error else {
      Issue.record("\(String(describing: error))")
      return
    }
    #expect(found == name)
  }

  @Test func ciphersThatLibcryptoLacksAreRefusedByName() throws {
    for name in ["serpent", "twofish", "cast5"] {
      var area = try Self.quick().area
      area.replaceSubrange(8..<(8 + name.utf8.count + 1), with: Array(name.utf8) + [0])
      #expect(throws: LUKSError.badField(name: "cipher", found: name, allowed: "aes")) {
        try Self.unlock(area)
      }
    }
  }

  @Test func aHeaderWithoutKeysIsRefused() throws {
    var area = try Self.quick().area
    area.replaceSubrange(208..<212, with: hex("0000dead"))
    #expect(throws: LUKSError.noActiveSlot) { try Self.unlock(area) }
  }

  @Test(.timeLimit(.minutes(3))) func mutatedHeadersNeverDoHarm() throws {
    let seed = testSeed("mutatedHeaders", fallback: .random(in: 1...999_999))
    var random = SeededGenerator(seed: seed)
    var limits = LUKSLimits()
    limits.iterations = 500
    let area = try Self.quick().area
    for turn in 0..<6000 {
      var changed = area
      for _ in 0..<Int.random(in: 1...4, using: &random) {
        let place = Int.random(in: 0..<592, using: &random)
        changed[place] = UInt8.random(in: 0...255, using: &random)
      }
      if turn % 5 == 0 {
        changed = Array(changed.prefix(Int.random(in: 0...area.count, using: &random)))
      }
      let header = changed.withUnsafeBytes {
        try? LUKSPartitionHeader(parsing: $0, limits: limits)
      }
      // The whole way only now and then: it hashes the key material.
      if header != nil, turn % 20 == 0 { _ = try? Self.unlock(changed, limits: limits) }
    }
    _ = try Self.unlock(area)
  }
}
