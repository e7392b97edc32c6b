/// XTS put together from single blocks, for AES-192, which libcrypto's XTS does not have.
///
/// Source: IEEE 1619, 5.3 and 5.4.
enum ComposedXTS {
  /// Runs one sector: `count` is a multiple of 16, at most 512; `iv` is the sector's vector and
  /// holds anything afterwards.
  static func run(
    _ direction: SectorTransform.Direction, _ set: borrowing ContextSet,
    _ source: UnsafeRawPointer, _ target: UnsafeMutableRawPointer, _ count: Int,
    _ iv: inout InlineVector
  ) {
    unsafe iv.withBytes { bytes in unsafe set.tweaker?.run(bytes, into: bytes, count: 16) }
    var tweak = iv
    for offset in stride(from: 0, to: count, by: 16) {
      unsafe whiten(source + offset, target + offset, tweak)
      tweak.double()
    }
    unsafe SectorTransform.runBlocks(direction, set, target, target, count)
    tweak = iv
    for offset in stride(from: 0, to: count, by: 16) {
      unsafe whiten(target + offset, target + offset, tweak)
      tweak.double()
    }
  }

  @inline(__always) private static func whiten(
    _ source: UnsafeRawPointer, _ target: UnsafeMutableRawPointer, _ tweak: InlineVector
  ) {
    let low = unsafe source.loadUnaligned(as: UInt64.self) ^ tweak.low
    let high = unsafe source.loadUnaligned(fromByteOffset: 8, as: UInt64.self) ^ tweak.high
    unsafe target.storeBytes(of: low, as: UInt64.self)
    unsafe target.storeBytes(of: high, toByteOffset: 8, as: UInt64.self)
  }
}
