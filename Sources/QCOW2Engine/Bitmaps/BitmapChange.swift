/// One change of the persistent bitmaps of an image.
package enum BitmapChange: Sendable {
  /// A new bitmap without bits, which follows all changes from then on.
  ///
  /// The granularity is in bytes, a power of two from 512 to 2 GiB; nil for QEMU's standard.
  case add(String, granularity: UInt64?)
  /// Takes a bitmap away, also one whose bits cannot be trusted.
  case remove(String)
  case removeAll
  /// Takes all bits away.
  case clear(String)
  /// The bitmap follows all changes from then on.
  case enable(String)
  /// The bitmap follows no changes any more.
  case disable(String)
  /// Adds the bits of another bitmap, which need not have the same granularity.
  case merge(into: String, from: BitmapSource)

  /// Where the bits of a merge come from.
  package enum BitmapSource: Sendable {
    /// A bitmap of the same image.
    case own(String)
    /// A bitmap of an image that nobody writes to meanwhile.
    case image(Image, String)
  }
}
