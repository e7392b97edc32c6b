import BlockCore
import QCOW2Format

/// Memory for the bits of tracked bitmaps; many small bitmaps share a region.
///
/// A region is a list of bitmaps, which a table offset of 0 ends:
///
///     0   where the bitmap's table starts in the host file, which says which one it is; 1 if the
///         bitmap is gone
///     8   the number of its bits
///     16  the exact bits, then the durable ones, in whole words: see ``TrackedBits``
///
/// What a bitmap leaves is used again for one with as many words.
final class BitmapWords: @unchecked Sendable {  // why: used by one task at a time
  /// What stands for a table offset where there is no bitmap any more: no cluster starts there.
  private static let gone: UInt64 = 1

  private struct Piece {
    let region: MetadataRegion
    /// Where the header of the bits starts in it.
    let start: Int
    let words: Int
  }

  private let memory: MetadataMemory
  private var region: MetadataRegion?
  private var used = 0
  /// The bytes of the next region at least: twice as many each time.
  private var next = 1 << 16
  /// By the address of the exact bits.
  private var pieces: [UInt: Piece] = [:]
  private var free: [Piece] = []

  init(_ memory: MetadataMemory) { self.memory = memory }

  /// Bits of a bitmap, all zero.
  ///
  /// - Throws: ``ImageError/noMemory(bytes:)``.
  func bits(
    count: UInt64, granularityBits: UInt8, table: HostOffset
  ) throws(ImageError) -> TrackedBits {
    let piece = try piece(words: TrackedBits.words(count))
    let header = unsafe piece.region.values(UInt64.self, at: piece.start, count: 2)
    unsafe header[1] = count
    MetadataMemory.orderStores()
    unsafe header[0] = table.bytes
    let bits = TrackedBits(
      count: count, granularityBits: granularityBits, in: piece.region, at: piece.start + 16)
    pieces[bits.address] = piece
    return bits
  }

  /// Takes the bits of a bitmap back that nobody looks at any more.
  func giveBack(_ bits: TrackedBits) {
    guard let piece = pieces.removeValue(forKey: bits.address) else { return }
    let header = unsafe piece.region.values(UInt64.self, at: piece.start, count: 2)
    unsafe header[0] = Self.gone
    MetadataMemory.orderStores()
    let words = unsafe piece.region.values(
      UInt64.self, at: piece.start + 16, count: 2 * piece.words)
    unsafe words.update(repeating: 0, count: 2 * piece.words)
    free.append(piece)
  }

  private func piece(words: Int) throws(ImageError) -> Piece {
    if let index = free.firstIndex(where: { $0.words == words }) { return free.remove(at: index) }
    let needed = (2 + 2 * words) * 8
    let region = try region(with: needed)
    defer { used += needed }
    return Piece(region: region, start: used, words: words)
  }

  /// The region in use, or a new one, if it has not so many bytes left and 8 that end the list.
  private func region(with needed: Int) throws(ImageError) -> MetadataRegion {
    if let region, region.byteCount - used >= needed + 8 { return region }
    let length = max(next, needed + 8)
    let region = try memory.region(.bitmapBits, elementSize: 8, count: length / 8)
    self.region = region
    used = 0
    next = length * 2
    return region
  }
}
