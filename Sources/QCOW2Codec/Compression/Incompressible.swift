import Glibc

/// Tells clusters that deflate cannot make smaller, for a tenth of what deflate takes to find out.
///
/// Encrypted data and files that are compressed already are most of them. A cluster counts as such if
/// its bytes are as evenly spread as random ones in each block, so that Huffman codes save less than
/// their own tables take, and if next to no four bytes come again within deflate's window.
@safe
final class Incompressible {
  /// The bytes in which the spread is looked at: no larger than the blocks that deflate makes.
  private static let block = 16384
  /// Four bytes that come again are no sign of order up to this number: random data has less than one.
  private static let mostRepeats = 2
  /// In bytes of a block: random data seems to save 23, with a deviation of 2; a table takes 60 and more.
  private static let mostSaved = 40.0
  /// The first bytes show most clusters that can be made smaller.
  private static let head = 4096
  private static let hashBits: UInt32 = 12
  /// QEMU's window of deflate.
  private static let window = 4096

  private let counts = UnsafeMutablePointer<UInt32>.allocate(capacity: 256)
  private let places = UnsafeMutablePointer<Int32>.allocate(capacity: 1 << Int(hashBits))

  deinit {
    unsafe counts.deallocate()
    unsafe places.deallocate()
  }

  /// Whether deflate would find nothing.
  func isIncompressible(_ bytes: UnsafeRawBufferPointer) -> Bool {
    guard bytes.count >= Self.head, let base = bytes.baseAddress else { return false }
    // A smaller part seems to save as much, and a deviation is as large.
    guard unsafe saved(base, Self.head) < Self.mostSaved else { return false }
    var start = 0
    while start < bytes.count {
      let count = min(Self.block, bytes.count - start)
      if unsafe count >= Self.head && saved(base + start, count) >= Self.mostSaved { return false }
      start += count
    }
    return unsafe repeats(base, bytes.count) <= Self.mostRepeats
  }

  /// What a perfect code for the bytes' frequencies would save, in bytes.
  private func saved(_ base: UnsafeRawPointer, _ count: Int) -> Double {
    unsafe counts.initialize(repeating: 0, count: 256)
    let bytes = unsafe base.assumingMemoryBound(to: UInt8.self)
    for index in 0..<count { unsafe counts[Int(bytes[index])] &+= 1 }
    var bits = 0.0
    for value in 0..<256 {
      let times = unsafe Double(counts[value])
      if times > 0 { bits += times * log2(Double(count) / times) }
    }
    return Double(count) - bits / 8
  }

  /// How many four bytes stand within the window before them, too; stops when there are enough.
  private func repeats(_ base: UnsafeRawPointer, _ count: Int) -> Int {
    unsafe places.initialize(repeating: Int32(-Self.window - 1), count: 1 << Int(Self.hashBits))
    var found = 0
    for place in 0..<max(count - 3, 0) {
      let word = unsafe base.loadUnaligned(fromByteOffset: place, as: UInt32.self)
      let slot = Int((word &* 0x9e37_79b1) >> (32 - Self.hashBits))
      let earlier = unsafe Int(places[slot])
      unsafe places[slot] = Int32(truncatingIfNeeded: place)
      guard place - earlier <= Self.window,
        unsafe base.loadUnaligned(fromByteOffset: earlier, as: UInt32.self) == word
      else { continue }
      found += 1
      if found > Self.mostRepeats { break }
    }
    return found
  }
}
