import Glibc

/// The contents of 512-byte sectors in tests: which change wrote them, and for which sector.
///
/// Change 0 stands for zeros. Word 0 is the change, word 1 the sector, the rest follows from both.
package enum SectorPattern {
  package static let size = 512

  package static func fill(_ target: UnsafeMutableRawPointer, change: UInt32, sector: Int) {
    if change == 0 {
      memset(target, 0, size)
      return
    }
    let first = UInt64(change) | 0x5a5a_0000_0000_0000
    let second = UInt64(sector)
    target.storeBytes(of: first, as: UInt64.self)
    target.storeBytes(of: second, toByteOffset: 8, as: UInt64.self)
    target.storeBytes(of: first &* 31 &+ second, toByteOffset: 16, as: UInt64.self)
    target.storeBytes(of: first ^ second, toByteOffset: 24, as: UInt64.self)
    var filled = 32
    while filled < size {
      memcpy(target + filled, target, filled)
      filled *= 2
    }
  }

  /// The change that `bytes` come from; nil if they are not the pattern of `sector`.
  package static func change(in bytes: UnsafeRawPointer, sector: Int) -> UInt32? {
    let first = bytes.loadUnaligned(as: UInt64.self)
    // All words equal to the first one, which is zero.
    if first == 0 { return memcmp(bytes, bytes + 8, size - 8) == 0 ? 0 : nil }
    guard first >> 48 == 0x5a5a, bytes.loadUnaligned(fromByteOffset: 8, as: UInt64.self) == sector,
      bytes.loadUnaligned(fromByteOffset: 16, as: UInt64.self) == first &* 31 &+ UInt64(sector),
      bytes.loadUnaligned(fromByteOffset: 24, as: UInt64.self) == first ^ UInt64(sector)
    else { return nil }
    // Each quarter repeats the one before it.
    guard memcmp(bytes, bytes + 32, size - 32) == 0 else { return nil }
    return UInt32(truncatingIfNeeded: first & 0xffff_ffff)
  }

  /// What a sector holds, in words, for a failure message.
  package static func describe(_ bytes: UnsafeRawPointer) -> String {
    let first = bytes.loadUnaligned(as: UInt64.self)
    let second = bytes.loadUnaligned(fromByteOffset: 8, as: UInt64.self)
    if first >> 48 == 0x5a5a {
      return "change \(first & 0xffff_ffff) of sector \(second), or a mix"
    }
    return "words 0x\(String(first, radix: 16)) 0x\(String(second, radix: 16))"
  }
}
