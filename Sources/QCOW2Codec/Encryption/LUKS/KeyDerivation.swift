import CCrypto
import Glibc

/// PBKDF2 with HMAC.
///
/// Source: RFC 8018, 5.2.
enum KeyDerivation {
  /// Derives `count` bytes.
  ///
  /// - Parameters:
  ///   - secret: A passphrase or a key, of any length.
  ///   - salt: Any bytes.
  ///   - iterations: At least 1.
  ///   - hash: The hash under the HMAC.
  ///   - count: The number of bytes wanted.
  /// - Returns: The bytes.
  /// - Throws: ``CipherError`` if libcrypto lacks the hash.
  static func derive(
    from secret: Secret, salt: [UInt8], iterations: UInt32, hash: HashAlgorithm, count: Int
  ) throws(CipherError) -> Secret {
    guard let rounds = Int32(exactly: iterations) else {
      throw .library(operation: "PBKDF2", detail: "\(iterations) iterations")
    }
    let algorithm = unsafe try Digest.fetch(hash)
    defer { unsafe EVP_MD_free(algorithm) }
    return unsafe try Secret(count: count) { (target) throws(CipherError) in
      let result = unsafe secret.withBytes { bytes in
        unsafe PKCS5_PBKDF2_HMAC(
          bytes.bindMemory(to: CChar.self).baseAddress, Int32(bytes.count), salt,
          Int32(salt.count), rounds, algorithm, Int32(count),
          target.bindMemory(to: UInt8.self).baseAddress)
      }
      guard result == 1 else { throw CryptoLibrary.failure("PBKDF2") }
    }
  }

  /// How many iterations take about `milliseconds` of this processor.
  ///
  /// Measured in the thread's own processor time, so that a busy machine does not make for weak
  /// keys, for a twentieth of a second or more.
  ///
  /// - Returns: `minimum` to `maximum`.
  /// - Throws: ``CipherError`` if libcrypto lacks the hash.
  static func iterations(
    taking milliseconds: Int, hash: HashAlgorithm, count: Int, minimum: UInt32, maximum: UInt32
  ) throws(CipherError) -> UInt32 {
    let secret = try unsafe Secret(count: 16) { (_) throws(CipherError) in }
    let salt = [UInt8](repeating: 0, count: LUKSFields.saltLength)
    var rounds: UInt32 = 1 << 14
    while true {
      let start = Stopwatch()
      _ = try derive(from: secret, salt: salt, iterations: rounds, hash: hash, count: count)
      let elapsed = start.nanoseconds
      if elapsed >= 50_000_000 || rounds >= 1 << 26 {
        let wanted = Double(rounds) * Double(milliseconds) * 1e6 / Double(max(elapsed, 1))
        return max(minimum, UInt32(min(wanted, Double(maximum))))
      }
      rounds *= 2
    }
  }
}

/// Measures the processor time of one thread.
private struct Stopwatch {
  private let processor = Stopwatch.now(CLOCK_THREAD_CPUTIME_ID)
  private let wall = Stopwatch.now(CLOCK_MONOTONIC)

  /// Since init; wall time where the kernel does not count the thread's.
  var nanoseconds: Int {
    let used = Self.now(CLOCK_THREAD_CPUTIME_ID) - processor
    return used > 0 ? used : Self.now(CLOCK_MONOTONIC) - wall
  }

  private static func now(_ clock: clockid_t) -> Int {
    var time = timespec()
    _ = unsafe clock_gettime(clock, &time)
    return time.tv_sec * 1_000_000_000 + time.tv_nsec
  }
}
