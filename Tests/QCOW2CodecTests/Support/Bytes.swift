@testable import QCOW2Codec

/// Bytes from hexadecimal digits; other characters are skipped.
func hex(_ text: String) -> [UInt8] {
  let digits = text.compactMap(\.hexDigitValue)
  return stride(from: 0, to: digits.count - 1, by: 2).map {
    UInt8(digits[$0] << 4 | digits[$0 + 1])
  }
}

/// SplitMix64: the same numbers from the same seed, everywhere.
struct Random: RandomNumberGenerator {
  private var state: UInt64

  init(seed: UInt64) { state = seed }

  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var z = state
    z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
    z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
    return z ^ (z >> 31)
  }

  mutating func bytes(_ count: Int) -> [UInt8] {
    var result: [UInt8] = []
    result.reserveCapacity(count + 8)
    while result.count < count {
      withUnsafeBytes(of: next()) { result.append(contentsOf: $0) }
    }
    return Array(result.prefix(count))
  }
}

extension Secret {
  convenience init(_ bytes: [UInt8]) {
    do {
      try self.init(count: bytes.count) { (target) throws(CipherError) in
        target.copyBytes(from: bytes)
      }
    } catch { fatalError("a test's secret: \(error)") }
  }
  convenience init(_ text: String) { self.init(Array(text.utf8)) }

  /// A copy, for comparisons.
  var revealed: [UInt8] { withBytes { Array($0) } }
}

extension SectorCipher {
  func encrypted(_ bytes: [UInt8], firstSector: UInt64) -> [UInt8] {
    var target = [UInt8](repeating: 0, count: bytes.count)
    bytes.withUnsafeBytes { source in
      target.withUnsafeMutableBytes { target in
        guard let from = source.baseAddress, let to = target.baseAddress else { return }
        encrypt(from, into: to, count: source.count, firstSector: firstSector)
      }
    }
    return target
  }

  func decrypted(_ bytes: [UInt8], firstSector: UInt64) -> [UInt8] {
    var target = bytes
    target.withUnsafeMutableBytes { target in
      guard let to = target.baseAddress else { return }
      decrypt(to, count: target.count, firstSector: firstSector)
    }
    return target
  }
}
