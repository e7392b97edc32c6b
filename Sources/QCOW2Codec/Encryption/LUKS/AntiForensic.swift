import CCrypto

/// The splitter that spreads a key over so many sectors that one erased byte destroys it.
///
/// Source: LUKS On-Disk Format Specification 1.2.3, "Anti-forensic splitter".
enum AntiForensic {
  /// Spreads `key` over `stripes` times its length.
  ///
  /// - Throws: ``LUKSError/noRandomness``, or ``LUKSError/cipher(_:)`` if libcrypto lacks the hash
  ///   or there is no memory.
  static func split(
    _ key: Secret, stripes: Int, hash: HashAlgorithm
  ) throws(LUKSError) -> Secret {
    let diffuser = try Diffuser(hash)
    return unsafe try Secret(count: key.count * stripes) { (target) throws(LUKSError) in
      let body = key.count * (stripes - 1)
      try unsafe Randomness.fill(UnsafeMutableRawBufferPointer(rebasing: target[..<body]))
      let mixed = unsafe try fold(
        UnsafeRawBufferPointer(rebasing: target[..<body]), length: key.count, diffuser)
      unsafe mixed.withBytes { mixed in
        unsafe key.withBytes { key in
          for index in 0..<key.count {
            unsafe target[body + index] = mixed[index] ^ key[index]
          }
        }
      }
    }
  }

  /// Makes the key of `length` bytes from what ``split(_:stripes:hash:)`` made of it.
  ///
  /// - Throws: ``LUKSError/cipher(_:)`` if libcrypto lacks the hash or there is no memory.
  static func merge(
    _ material: Secret, length: Int, hash: HashAlgorithm
  ) throws(LUKSError) -> Secret {
    let diffuser = try Diffuser(hash)
    return unsafe try material.withBytes { (bytes) throws(LUKSError) in
      let body = bytes.count - length
      let mixed = unsafe try fold(
        UnsafeRawBufferPointer(rebasing: bytes[..<body]), length: length, diffuser)
      return unsafe try Secret(count: length) { (target) throws(LUKSError) in
        unsafe mixed.withBytes { mixed in
          for index in 0..<length { unsafe target[index] = mixed[index] ^ bytes[body + index] }
        }
      }
    }
  }

  /// Folds all stripes but the last into one.
  private static func fold(
    _ stripes: UnsafeRawBufferPointer, length: Int, _ diffuser: borrowing Diffuser
  ) throws(LUKSError) -> Secret {
    unsafe try Secret(count: length) { (target) throws(LUKSError) in
      for start in Swift.stride(from: 0, to: stripes.count, by: length) {
        for index in 0..<length { unsafe target[index] ^= stripes[start + index] }
        try unsafe diffuser.diffuse(target)
      }
    }
  }
}

/// Hashes a stripe, block by block, each with its number in front.
@safe private struct Diffuser: ~Copyable {
  private let context: OpaquePointer
  private let algorithm: OpaquePointer
  private let blockLength: Int
  private let scratch: UnsafeMutablePointer<UInt8>

  init(_ hash: HashAlgorithm) throws(LUKSError) {
    do throws(CipherError) {
      let fetched = unsafe try Digest.fetch(hash)
      guard let made = unsafe EVP_MD_CTX_new() else {
        unsafe EVP_MD_free(fetched)
        throw CryptoLibrary.failure(hash.libraryName)
      }
      unsafe algorithm = fetched
      unsafe context = made
    } catch {
      throw .cipher(error)
    }
    blockLength = hash.digestLength
    unsafe scratch = .allocate(capacity: blockLength)
  }

  deinit {
    unsafe EVP_MD_CTX_free(context)
    unsafe EVP_MD_free(algorithm)
    unsafe OPENSSL_cleanse(scratch, blockLength)
    unsafe scratch.deallocate()
  }

  func diffuse(_ stripe: UnsafeMutableRawBufferPointer) throws(LUKSError) {
    var number: UInt32 = 0
    for start in stride(from: 0, to: stripe.count, by: blockLength) {
      let length = min(blockLength, stripe.count - start)
      let block = unsafe UnsafeMutableRawBufferPointer(rebasing: stripe[start..<(start + length)])
      var prefix = number.bigEndian
      guard unsafe EVP_DigestInit_ex2(context, algorithm, nil) == 1,
        unsafe EVP_DigestUpdate(context, &prefix, 4) == 1,
        unsafe EVP_DigestUpdate(context, block.baseAddress, length) == 1,
        unsafe EVP_DigestFinal_ex(context, scratch, nil) == 1
      else { throw .cipher(CryptoLibrary.failure("digest")) }
      unsafe block.copyMemory(from: UnsafeRawBufferPointer(start: scratch, count: length))
      number += 1
    }
  }
}
