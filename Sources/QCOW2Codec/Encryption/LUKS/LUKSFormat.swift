/// Makes new LUKS headers.
package enum LUKSFormat {
  /// What a new header asks for; the defaults are qemu-img's.
  package struct Options: Equatable, Sendable {
    package var cipher: AESKeyLength = .aes256
    package var mode: CipherMode = .xts
    package var iv: IVGenerator = .plain64
    package var hash: HashAlgorithm = .sha256
    /// How long opening a key slot takes on this machine.
    package var iterationMilliseconds: Int = 2000

    package init() {}

    var suite: CipherSuite { CipherSuite(cipher, mode, iv) }
  }

  static let smallestIterations: UInt32 = 1000

  /// The length of the header that ``create(_:passphrase:)`` makes, in bytes.
  ///
  /// 4 KiB for the header, then the key material of eight slots, each rounded up to 4 KiB.
  package static func areaLength(_ options: Options) -> Int {
    payloadSector(options.suite) * SectorTransform.sectorSize
  }

  /// Makes a header with a new master key and one key slot, and the cipher that it stands for.
  ///
  /// Takes as long as the measurements of the iterations do, and twice the iteration time.
  ///
  /// - Returns: All bytes of the header area, the seven slots that are free being zeros, and the
  ///   cipher.
  /// - Throws: ``LUKSError/cipher(_:)`` if libcrypto lacks an algorithm,
  ///   ``LUKSError/noRandomness``, ``LUKSError/badField(name:found:allowed:)`` for a cipher whose
  ///   key material QEMU cannot read.
  package static func create(
    _ options: Options, passphrase: Secret
  ) throws(LUKSError) -> (area: [UInt8], cipher: LUKSCipher) {
    let suite = options.suite
    try checkInterchange(suite)
    let masterKey = unsafe try Secret(count: suite.keyLength) { (target) throws(LUKSError) in
      try unsafe Randomness.fill(target)
    }
    // A key that libcrypto or the vectors refuse must fail before the long work.
    let milliseconds = max(0, min(options.iterationMilliseconds, 1_000_000))
    var header = try emptyHeader(options)
    _ = try LUKSCipher(header, masterKey: masterKey)
    header.digestIterations = try iterations(
      milliseconds / 8, options.hash, count: LUKSFields.digestLength)
    header.slots[0].iterations = try iterations(
      milliseconds, options.hash, count: suite.keyLength)
    return try seal(header, masterKey: masterKey, passphrase: passphrase)
  }

  /// Refuses what QEMU ends with an assertion on: key material that is not whole sectors, as that
  /// of AES-192 is in all modes but XTS.
  private static func checkInterchange(_ suite: CipherSuite) throws(LUKSError) {
    let length = suite.keyLength * LUKSPartitionHeader.stripes
    guard length % SectorTransform.sectorSize == 0 else {
      throw .badField(
        name: "cipher", found: "aes-\(suite.cipher.bits) in \(suite.mode.rawValue) mode",
        allowed: "aes-128, aes-256, or aes-192 in xts mode")
    }
  }

  /// Fills in the digest and the first key slot.
  static func seal(
    _ empty: LUKSPartitionHeader, masterKey: Secret, passphrase: Secret
  ) throws(LUKSError) -> (area: [UInt8], cipher: LUKSCipher) {
    var header = empty
    header.digest = unsafe try header.digest(of: masterKey).withBytes { unsafe Array($0) }
    header.slots[0].isActive = true
    header.slots[0].salt = try Randomness.bytes(LUKSFields.saltLength)
    let material = try LUKSKeySlot.seal(
      masterKey, in: header.slots[0], of: header, passphrase: passphrase)
    var area = [UInt8](
      repeating: 0, count: Int(header.payloadSector) * SectorTransform.sectorSize)
    area.replaceSubrange(0..<LUKSFields.length, with: header.encoded)
    let start = header.slots[0].materialOffset
    area.replaceSubrange(start..<(start + material.count), with: material)
    return (area, try LUKSCipher(header, masterKey: masterKey))
  }

  /// A header with all places assigned and no key.
  static func emptyHeader(_ options: Options) throws(LUKSError) -> LUKSPartitionHeader {
    let suite = options.suite
    let slots = (0..<LUKSFields.slotCount).map { number in
      LUKSPartitionHeader.Slot(
        isActive: false, iterations: 0,
        salt: [UInt8](repeating: 0, count: LUKSFields.saltLength),
        materialSector: UInt32(materialSector(suite, slot: number)))
    }
    return LUKSPartitionHeader(
      suite: suite, hash: options.hash, payloadSector: UInt32(payloadSector(suite)),
      digest: [UInt8](repeating: 0, count: LUKSFields.digestLength),
      digestSalt: try Randomness.bytes(LUKSFields.saltLength), digestIterations: 1,
      uuid: try Randomness.uuid(), slots: slots)
  }

  private static func iterations(
    _ milliseconds: Int, _ hash: HashAlgorithm, count: Int
  ) throws(LUKSError) -> UInt32 {
    do throws(CipherError) {
      return try KeyDerivation.iterations(
        taking: milliseconds, hash: hash, count: count, minimum: smallestIterations,
        maximum: LUKSLimits().iterations)
    } catch {
      throw .cipher(error)
    }
  }

  private static func payloadSector(_ suite: CipherSuite) -> Int {
    materialSector(suite, slot: LUKSFields.slotCount)
  }

  private static func materialSector(_ suite: CipherSuite, slot: Int) -> Int {
    let alignment = LUKSPartitionHeader.materialAlignment
    let bytes = suite.keyLength * LUKSPartitionHeader.stripes
    let sectors = (bytes + SectorTransform.sectorSize - 1) / SectorTransform.sectorSize
    return alignment + slot * ((sectors + alignment - 1) / alignment * alignment)
  }
}
