/// What a key slot does with the master key.
enum LUKSKeySlot {
  /// Opens a slot.
  ///
  /// - Parameters:
  ///   - slot: A slot in use, whose key material lies in `area`.
  ///   - header: The header it is of.
  ///   - area: The header and the key material.
  ///   - passphrase: Any.
  /// - Returns: What may be the master key, or noise if the passphrase is not the slot's.
  /// - Throws: ``LUKSError/cipher(_:)`` if libcrypto lacks an algorithm or there is no memory.
  static func open(
    _ slot: LUKSPartitionHeader.Slot, of header: LUKSPartitionHeader,
    in area: UnsafeRawBufferPointer, passphrase: Secret
  ) throws(LUKSError) -> Secret {
    let transform = try transform(slot, header, passphrase)
    let range = slot.materialOffset..<(slot.materialOffset + header.materialLength)
    let material = unsafe try Secret(count: header.materialLength) { (target) throws(LUKSError) in
      let source = unsafe UnsafeRawBufferPointer(rebasing: area[range])
      guard let from = source.baseAddress, let to = target.baseAddress else { return }
      unsafe transform.run(.decrypt, from, into: to, count: source.count, firstSector: 0)
    }
    return try AntiForensic.merge(material, length: header.suite.keyLength, hash: header.hash)
  }

  /// Makes the key material of a slot.
  ///
  /// - Throws: ``LUKSError/noRandomness`` or ``LUKSError/cipher(_:)``.
  static func seal(
    _ masterKey: Secret, in slot: LUKSPartitionHeader.Slot, of header: LUKSPartitionHeader,
    passphrase: Secret
  ) throws(LUKSError) -> [UInt8] {
    let transform = try transform(slot, header, passphrase)
    let split = try AntiForensic.split(
      masterKey, stripes: LUKSPartitionHeader.stripes, hash: header.hash)
    var material = [UInt8](repeating: 0, count: split.count)
    unsafe material.withUnsafeMutableBytes { target in
      unsafe split.withBytes { source in
        guard let from = source.baseAddress, let to = target.baseAddress else { return }
        unsafe transform.run(.encrypt, from, into: to, count: source.count, firstSector: 0)
      }
    }
    return material
  }

  private static func transform(
    _ slot: LUKSPartitionHeader.Slot, _ header: LUKSPartitionHeader, _ passphrase: Secret
  ) throws(LUKSError) -> SectorTransform {
    do throws(CipherError) {
      let key = try KeyDerivation.derive(
        from: passphrase, salt: slot.salt, iterations: slot.iterations, hash: header.hash,
        count: header.suite.keyLength)
      return try SectorTransform(header.suite, key: key, threads: 1)
    } catch {
      throw .cipher(error)
    }
  }
}

extension LUKSPartitionHeader {
  /// What the header must keep so that a master key can be told from noise.
  func digest(of masterKey: Secret) throws(LUKSError) -> Secret {
    do throws(CipherError) {
      return try KeyDerivation.derive(
        from: masterKey, salt: digestSalt, iterations: digestIterations, hash: hash,
        count: LUKSFields.digestLength)
    } catch {
      throw .cipher(error)
    }
  }
}
