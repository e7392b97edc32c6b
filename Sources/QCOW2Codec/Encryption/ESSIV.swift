import CCrypto

/// Encrypted salt-sector initialisation vectors: the sector number encrypted with a hash of the
/// key.
enum ESSIV {
  /// The context that encrypts the sector numbers; nil if the suite's vectors are made otherwise.
  ///
  /// The cipher is the AES whose key is as long as the digest: SHA-256 gives AES-256, MD5 AES-128.
  /// ECB uses no vectors, whatever the header names.
  static func context(
    _ suite: CipherSuite, key: UnsafeRawBufferPointer
  ) throws(CipherError) -> CipherContext? {
    guard case .essiv(let hash) = suite.iv, suite.mode != .ecb else { return nil }
    guard let cipher = AESKeyLength(rawValue: hash.digestLength) else {
      throw .missing(algorithm: "AES with a key of \(hash.digestLength) bytes, for essiv:\(hash)")
    }
    let salt = try unsafe Digest.secret(hash, of: key)
    return unsafe try salt.withBytes { (bytes) throws(CipherError) in
      try unsafe CipherContext(cipher, .ecb, key: bytes, encrypts: true)
    }
  }
}
