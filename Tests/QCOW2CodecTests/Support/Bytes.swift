@testable import QCOW2Codec

/// Bytes from hexadecimal digits; other characters are skipped.
func hex(_ text: String) -> [UInt8] {
  let digits = text.compactMap(\.hexDigitValue)
  return stride(from: 0, to: digits.count - 1, by: 2).map {
    UInt8(digits[$0] << 4 | digits[$0 + 1])
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
