import BlockCore

/// Memory for the bits of tracked bitmaps; many small bitmaps share a region.
///
/// A region is a list of bitmaps, which a table offset of 0 ends:
///
///     0   where the bitmap's table starts in the host file, which says which one it is
///     8   the number of its bits
///     16  the exact bits, then the durable ones, in whole words: see ``TrackedBits``
struct BitmapWords {
  private let memory: MetadataMemory
  private var region: MetadataRegion?
  private var used = 0
  /// The bytes of the next region at least: twice as many each time.
  private var next = 1 << 16

  init(_ memory: MetadataMemory) { self.memory = memory }

  /// Bits of a bitmap, all zero.
  ///
  /// - Throws: ``ImageError/noMemory(bytes:)``.
  mutating func bits(
    count: UInt64, granularityBits: UInt8, table: HostOffset
  ) throws(ImageError) -> TrackedBits {
    let words = TrackedBits.words(count)
    let needed = (2 + 2 * words) * 8
    let region = try region(with: needed)
    let start = used
    used += needed
    let header = unsafe region.values(UInt64.self, at: start, count: 2)
    unsafe header[1] = count
    MetadataMemory.orderStores()
    unsafe header[0] = table.bytes
    return TrackedBits(
      count: count, granularityBits: granularityBits, in: region, at: start + 16)
  }

  /// The region in use, or a new one, if it has not so many bytes left and 8 that end the list.
  private mutating func region(with needed: Int) throws(ImageError) -> MetadataRegion {
    if let region, region.byteCount - used >= needed + 8 { return region }
    let length = max(next, needed + 8)
    let region = try memory.region(.bitmapBits, elementSize: 8, count: length / 8)
    self.region = region
    used = 0
    next = length * 2
    return region
  }
}
