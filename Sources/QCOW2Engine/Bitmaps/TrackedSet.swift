/// The bits of all tracked bitmaps, as requests look at them: no reference is counted.
///
/// Never changes once it is in force. Whoever puts another set in its place frees it when all requests
/// from before have ended.
@safe
struct TrackedSet {
  let count: Int
  let bits: UnsafeMutablePointer<TrackedBits>

  /// A set of bitmaps; nil if there are none.
  static func make(_ bitmaps: [TrackedBitmap]) -> UnsafeMutablePointer<TrackedSet>? {
    if bitmaps.isEmpty { return nil }
    let bits = UnsafeMutablePointer<TrackedBits>.allocate(capacity: bitmaps.count)
    for (index, bitmap) in bitmaps.enumerated() {
      unsafe (bits + index).initialize(to: bitmap.bits)
    }
    let set = UnsafeMutablePointer<TrackedSet>.allocate(capacity: 1)
    unsafe set.initialize(to: TrackedSet(count: bitmaps.count, bits: bits))
    return unsafe set
  }

  /// Frees a set that nobody looks at any more.
  static func free(_ set: UnsafeMutablePointer<TrackedSet>?) {
    guard let set = unsafe set else { return }
    unsafe set.pointee.bits.deallocate()
    unsafe set.deallocate()
  }
}
