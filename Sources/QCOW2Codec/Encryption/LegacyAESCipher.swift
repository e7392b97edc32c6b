/// The encryption of `crypt_method` 1: AES-128 in CBC mode, keyed by the passphrase itself.
///
/// Weak, and here to read and write old images: the key is no stronger than the first 16 bytes that
/// were typed, and equal sectors at one place encrypt equally in every image of one passphrase.
/// Any passphrase opens any image; a wrong one reads as noise.
///
/// Source: qcow2 specification, "Data encryption"; the key's length is what QEMU uses.
@safe package final class LegacyAESCipher: TransformCipher {
  let transform: SectorTransform
  private static let suite = CipherSuite(.aes128, .cbc, .plain64)

  /// - Parameter passphrase: Its first 16 bytes are the key; a shorter one is padded with zeros.
  /// - Throws: ``CipherError`` if libcrypto lacks the cipher or there is no memory.
  package init(passphrase: Secret) throws(CipherError) {
    let key = unsafe try Secret(count: Self.suite.keyLength) { (target) throws(CipherError) in
      unsafe passphrase.withBytes { bytes in
        unsafe target.copyMemory(from: UnsafeRawBufferPointer(rebasing: bytes.prefix(target.count)))
      }
    }
    transform = try SectorTransform(Self.suite, key: key)
  }

  package var ivBasis: IVBasis { .guest }
}
