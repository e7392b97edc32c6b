import CCrypto

/// One libcrypto context: a cipher, a direction and the key's schedule.
///
/// For one thread at a time. Freeing it wipes the schedule, which lies in libcrypto's own memory.
@safe struct CipherContext: ~Copyable {
  private let context: OpaquePointer

  /// - Parameters:
  ///   - cipher: The key's length and with it the cipher.
  ///   - mode: Any.
  ///   - key: As many bytes as cipher and mode need.
  ///   - encrypts: The direction.
  /// - Throws: ``CipherError`` of any kind.
  init(
    _ cipher: AESKeyLength, _ mode: CipherMode, key: UnsafeRawBufferPointer, encrypts: Bool
  ) throws(CipherError) {
    let name = "AES-\(cipher.bits)-\(mode.rawValue.uppercased())"
    let expected = cipher.rawValue * (mode == .xts ? 2 : 1)
    guard key.count == expected else {
      throw .keyLength(algorithm: name, found: key.count, expected: expected)
    }
    guard let algorithm = unsafe EVP_CIPHER_fetch(nil, name, nil) else {
      ERR_clear_error()
      throw .missing(algorithm: name)
    }
    defer { unsafe EVP_CIPHER_free(algorithm) }
    guard let made = unsafe EVP_CIPHER_CTX_new() else { throw CryptoLibrary.failure(name) }
    let bytes = unsafe key.bindMemory(to: UInt8.self).baseAddress
    guard unsafe EVP_CipherInit_ex2(made, algorithm, bytes, nil, encrypts ? 1 : 0, nil) == 1,
      unsafe EVP_CIPHER_CTX_set_padding(made, 0) == 1
    else {
      let error = CryptoLibrary.failure(name)
      unsafe EVP_CIPHER_CTX_free(made)
      throw error
    }
    unsafe context = made
  }

  deinit { unsafe EVP_CIPHER_CTX_free(context) }

  /// Starts a sector.
  ///
  /// - Parameter iv: 16 bytes.
  @inline(__always) func start(iv: UnsafePointer<UInt8>) {
    let result = unsafe EVP_CipherInit_ex2(context, nil, nil, iv, -1, nil)
    precondition(result == 1, "libcrypto lost a cipher that it had")
  }

  /// Runs `count` bytes, a multiple of 16 below 2^31; `source` and `target` are equal or disjoint.
  ///
  /// Going on after a failure would write plain text or hand out garbage, so it ends the program;
  /// libcrypto has no way to fail here with a context that has worked before.
  @inline(__always) func run(
    _ source: UnsafeRawPointer, into target: UnsafeMutableRawPointer, count: Int
  ) {
    var written: Int32 = 0
    let result = unsafe EVP_CipherUpdate(
      context, target.assumingMemoryBound(to: UInt8.self), &written,
      source.assumingMemoryBound(to: UInt8.self), Int32(count))
    precondition(result == 1 && Int(written) == count, "libcrypto lost a cipher that it had")
  }
}
