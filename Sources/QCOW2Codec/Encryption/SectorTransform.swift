/// Encrypts and decrypts runs of 512-byte sectors with one key; what every ``SectorCipher`` is made
/// of.
///
/// For any number of threads at once. Allocates nothing after init.
@safe final class SectorTransform: Sendable {
  let suite: CipherSuite
  private let pool: ContextPool

  static let sectorSize = 512
  /// Between the calls into libcrypto, which counts in 32 bits.
  private static let largestRun = 1 << 20

  /// - Parameters:
  ///   - suite: Cipher, mode and vectors.
  ///   - key: As long as the suite needs.
  ///   - threads: How many threads will use it; nil for as many as the machine can run.
  /// - Throws: ``CipherError`` if libcrypto lacks the cipher, or the key has the wrong length.
  init(_ suite: CipherSuite, key: Secret, threads: Int? = nil) throws(CipherError) {
    guard key.count == suite.keyLength else {
      throw .keyLength(
        algorithm: "AES-\(suite.cipher.bits)-\(suite.mode.rawValue.uppercased())",
        found: key.count, expected: suite.keyLength)
    }
    self.suite = suite
    pool = try ContextPool(suite, key: key, count: threads)
  }

  enum Direction { case encrypt, decrypt }

  /// Runs `count` bytes, a multiple of 16; the last sector may be a short one.
  ///
  /// `source` and `target` are equal or do not overlap.
  func run(
    _ direction: Direction, _ source: UnsafeRawPointer, into target: UnsafeMutableRawPointer,
    count: Int, firstSector: UInt64
  ) {
    precondition(count >= 0 && count % 16 == 0)
    pool.withSet { set in
      if suite.mode == .ecb {
        unsafe Self.runBlocks(direction, set, source, target, count)
        return
      }
      var iv = InlineVector()
      var done = 0
      var sector = firstSector
      while done < count {
        let length = min(Self.sectorSize, count - done)
        iv.set(sector, suite.iv, set)
        let from = unsafe source + done
        let to = unsafe target + done
        if suite.composesXTS {
          unsafe ComposedXTS.run(direction, set, from, to, length, &iv)
        } else {
          unsafe Self.runSector(direction, set, from, to, length, &iv)
        }
        done += length
        sector &+= 1  // why &+: sector numbers that wrap belong to no disk, and must not trap
      }
    }
  }

  @inline(__always) private static func runSector(
    _ direction: Direction, _ set: borrowing ContextSet, _ source: UnsafeRawPointer,
    _ target: UnsafeMutableRawPointer, _ count: Int, _ iv: inout InlineVector
  ) {
    unsafe iv.withPointer { vector in
      switch direction {
      case .encrypt:
        unsafe set.encryptor.start(iv: vector)
        unsafe set.encryptor.run(source, into: target, count: count)
      case .decrypt:
        unsafe set.decryptor.start(iv: vector)
        unsafe set.decryptor.run(source, into: target, count: count)
      }
    }
  }

  /// Runs blocks that do not depend on each other.
  static func runBlocks(
    _ direction: Direction, _ set: borrowing ContextSet, _ source: UnsafeRawPointer,
    _ target: UnsafeMutableRawPointer, _ count: Int
  ) {
    var done = 0
    while done < count {
      let length = min(largestRun, count - done)
      switch direction {
      case .encrypt:
        unsafe set.encryptor.run(source + done, into: target + done, count: length)
      case .decrypt:
        unsafe set.decryptor.run(source + done, into: target + done, count: length)
      }
      done += length
    }
  }
}
