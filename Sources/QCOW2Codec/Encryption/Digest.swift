import CCrypto

/// Hashes, by libcrypto.
enum Digest {
  /// The digest of `bytes`, which is as secret as they are.
  static func secret(
    _ hash: HashAlgorithm, of bytes: UnsafeRawBufferPointer
  ) throws(CipherError) -> Secret {
    let algorithm = unsafe try fetch(hash)
    defer { unsafe EVP_MD_free(algorithm) }
    return unsafe try Secret(count: hash.digestLength) { (target) throws(CipherError) in
      let digest = unsafe target.bindMemory(to: UInt8.self).baseAddress
      guard
        unsafe EVP_Digest(bytes.baseAddress, bytes.count, digest, nil, algorithm, nil) == 1
      else { throw CryptoLibrary.failure(hash.libraryName) }
    }
  }

  /// - Returns: The algorithm, which the caller frees.
  static func fetch(_ hash: HashAlgorithm) throws(CipherError) -> OpaquePointer {
    guard let algorithm = unsafe EVP_MD_fetch(nil, hash.libraryName, nil) else {
      ERR_clear_error()
      throw .missing(algorithm: hash.libraryName)
    }
    return unsafe algorithm
  }
}
