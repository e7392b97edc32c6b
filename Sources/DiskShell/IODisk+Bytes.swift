import BlockCore
import DiskImages

/// Requests of any offset and length, in pieces that fit into memory.
///
/// What does not begin or end with a sector is read, changed and written back.
extension IODisk {
  /// Pieces end on multiples of this.
  private static let pieceBytes: UInt64 = 16 << 20

  /// A piece of a request: the bytes wanted, and the whole sectors around them.
  struct Piece {
    let offset: UInt64
    let count: Int
    var end: UInt64 { offset + UInt64(count) }
    var start: UInt64 { offset & ~511 }
    var sectors: Range<UInt64> { start..<((end + 511) & ~511) }
    /// The bytes before those wanted.
    var skipped: Int { Int(offset - start) }
    var isWhole: Bool { offset == start && end & 511 == 0 }
  }

  /// How data is written.
  enum WriteWay {
    case plain
    /// Durable when it is done.
    case throughCache
    case compressed
  }

  /// Whether the range lies within the disk.
  func holds(_ offset: UInt64, _ count: UInt64) -> Bool {
    offset <= size && count <= size - offset
  }

  private func pieces(_ offset: UInt64, _ count: UInt64) -> some Sequence<Piece> {
    let end = offset + count  // both below 2^63
    return sequence(state: offset) { next in
      if next >= end { return nil }
      let pieceEnd = min(end, (next / Self.pieceBytes + 1) * Self.pieceBytes)
      defer { next = pieceEnd }
      return Piece(offset: next, count: Int(pieceEnd - next))
    }
  }

  /// Memory for a piece's sectors.
  private func memory(for piece: Piece) -> (buffer: IOBuffer, data: DataBuffer) {
    let shift = opening.misaligns ? 16 : 0
    let count = Int(piece.sectors.upperBound - piece.sectors.lowerBound)
    let buffer = IOBuffer(count: count + shift)
    return (buffer, buffer.data.slice(shift, count))
  }

  /// The bytes of a piece that are wanted, in the memory of its sectors.
  private static func wanted(
    _ piece: Piece, in data: DataBuffer
  ) -> UnsafeMutableRawBufferPointer {
    unsafe UnsafeMutableRawBufferPointer(
      start: data.memory.map { unsafe $0 + piece.skipped }, count: piece.count)
  }

  /// Reads a range, piece by piece; `body` gets each piece's bytes and their offset on the disk.
  func read(
    _ offset: UInt64, _ count: UInt64, _ body: (UnsafeRawBufferPointer, UInt64) -> Void
  ) async throws(Errno) {
    guard holds(offset, count) else { throw .io }
    for piece in pieces(offset, count) {
      let (buffer, data) = memory(for: piece)
      defer { withExtendedLifetime(buffer) {} }
      try await readSectors(data, at: piece.start)
      unsafe body(UnsafeRawBufferPointer(Self.wanted(piece, in: data)), piece.offset)
    }
  }

  private func readSectors(_ data: DataBuffer, at offset: UInt64) async throws(Errno) {
    let request = BlockRequest(
      .read, offset: GuestOffset(offset), length: UInt64(data.count), data: data)
    if let errno = await perform(request) { throw errno }
  }

  /// Writes a range, piece by piece; `fill` makes each piece's bytes, given where they lie in the
  /// request.
  func write(
    _ offset: UInt64, _ count: UInt64, _ way: WriteWay,
    _ fill: (UnsafeMutableRawBufferPointer, UInt64) -> Void
  ) async throws(Errno) {
    guard holds(offset, count) else { throw .io }
    for piece in pieces(offset, count) {
      try unsafe await writePiece(piece, way) { memory in
        unsafe fill(memory, piece.offset - offset)
      }
    }
  }

  private func writePiece(
    _ piece: Piece, _ way: WriteWay, _ fill: (UnsafeMutableRawBufferPointer) -> Void
  ) async throws(Errno) {
    let held = await ranges.acquire(piece.sectors, alone: !piece.isWhole)
    defer { ranges.release(held) }
    let (buffer, data) = memory(for: piece)
    defer { withExtendedLifetime(buffer) {} }
    if piece.skipped > 0 { try await readSectors(data.slice(0, 512), at: piece.start) }
    if piece.end & 511 != 0, piece.skipped == 0 || data.count > 512 {
      let last = data.count - 512
      try await readSectors(data.slice(last, 512), at: piece.start + UInt64(last))
    }
    unsafe fill(Self.wanted(piece, in: data))
    var request = BlockRequest(
      .write, offset: GuestOffset(piece.start), length: UInt64(data.count), data: data,
      isFUA: way == .throughCache || opening.cache.writesThrough)
    request.compresses = way == .compressed
    if let errno = await perform(request) { throw errno }
  }

  /// Makes a range read as zeros by a request for that; ends that share their sector with data, by data.
  func writeZeroes(
    _ offset: UInt64, _ count: UInt64, unmaps: Bool, isFUA: Bool
  ) async throws(Errno) {
    guard holds(offset, count) else { throw .io }
    if count == 0 { return }
    let wanted = offset..<(offset + count)
    let whole = try await writeZeroSectors(wanted, unmaps: unmaps, isFUA: isFUA)
    if whole.isEmpty { return try await writeZeroData(wanted, isFUA: isFUA) }
    if offset < whole.lowerBound {
      try await writeZeroData(offset..<whole.lowerBound, isFUA: isFUA)
    }
    if whole.upperBound < wanted.upperBound {
      try await writeZeroData(whole.upperBound..<wanted.upperBound, isFUA: isFUA)
    }
  }

  /// Zeroes the sectors of a range that will read as zeros altogether, and says which they were.
  private func writeZeroSectors(
    _ wanted: Range<UInt64>, unmaps: Bool, isFUA: Bool
  ) async throws(Errno) -> Range<UInt64> {
    var (start, end) = (wanted.lowerBound & ~511, (wanted.upperBound + 511) & ~511)
    let held = await ranges.acquire(start..<end, alone: start..<end != wanted)
    defer { ranges.release(held) }
    if try await !isZero(start..<wanted.lowerBound) { start += 512 }
    if start < end, try await !isZero(wanted.upperBound..<end) { end -= 512 }
    if start >= end { return wanted.lowerBound..<wanted.lowerBound }
    let request = BlockRequest(
      .writeZeroes, offset: GuestOffset(start), length: end - start,
      isFUA: isFUA || opening.cache.writesThrough, keepsAllocation: !unmaps || !opening.discards)
    if let errno = await perform(request) { throw errno }
    return start..<end
  }

  /// Whether a part of one sector reads as zeros.
  private func isZero(_ range: Range<UInt64>) async throws(Errno) -> Bool {
    if range.isEmpty { return true }
    let piece = Piece(offset: range.lowerBound, count: range.count)
    let (buffer, data) = memory(for: piece)
    defer { withExtendedLifetime(buffer) {} }
    try await readSectors(data, at: piece.start)
    return unsafe Self.wanted(piece, in: data).allSatisfy { $0 == 0 }
  }

  /// Writes the zeros of less than two sectors.
  private func writeZeroData(_ range: Range<UInt64>, isFUA: Bool) async throws(Errno) {
    if range.isEmpty { return }
    try unsafe await write(
      range.lowerBound, UInt64(range.count), isFUA ? .throughCache : .plain
    ) { memory, _ in
      unsafe memory.initializeMemory(as: UInt8.self, repeating: 0)
    }
  }

  /// Discards the whole sectors of a range; what is left of it keeps its data.
  func discard(_ offset: UInt64, _ count: UInt64) async throws(Errno) {
    guard holds(offset, count) else { throw .io }
    let first = (offset + 511) & ~511
    let end = (offset + count) & ~511
    if !opening.discards || first >= end { return }
    let held = await ranges.acquire(first..<end, alone: false)
    defer { ranges.release(held) }
    let request = BlockRequest(.discard, offset: GuestOffset(first), length: end - first)
    if let errno = await perform(request) { throw errno }
  }

  /// Makes everything durable that was written before.
  func flush() async throws(Errno) {
    if opening.cache == .unsafe { return }
    if let errno = await perform(BlockRequest(.flush)) { throw errno }
  }
}
