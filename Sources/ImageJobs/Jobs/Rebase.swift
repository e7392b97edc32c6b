import BlockCore
import DiskImages
import Glibc
import QCOW2Engine
import QCOW2Format

/// Finds where an image would read otherwise on another backing file, and keeps what it reads now.
struct Rebase: Sendable {
  /// What lies below the image now; nil for nothing.
  private let old: (any BackingLayer)?
  /// What is to lie there; nil for nothing.
  private let new: (any BackingLayer)?
  /// The new backing file is the one at this place of the old chain.
  private let index: Int?
  private let engine: Image
  private let compresses: Bool
  /// What is compared and kept as a whole, in bytes.
  private let unit: UInt64

  init(_ subject: RebaseSubject, compresses: Bool) {
    engine = subject.image.engine
    old = subject.image.backingFiles.first?.layer
    new = subject.base?.layer
    index = subject.base?.index
    self.compresses = compresses
    unit = engine.mappingUnit
  }

  /// Copies into the image what it would no longer read; durable when this returns.
  func copyDifferences(
    into image: JobDisk, _ context: JobContext<NoValue>
  ) async throws(JobError) {
    let end = engine.size
    context.progress.begin(end, .bytes)
    // The backing file that it has already: no range can differ.
    if index == 0 { return context.progress.reach(end) }
    let most = max(PieceRunner<Void>.pieceBytes, unit)
    let runner = PieceRunner<Void>(width: 4, bytes: 2 * Int(most))
    var offset: UInt64 = 0
    try await runner.run(context) { () async throws(JobError) in
      while offset < end {
        let found = try await self.look(from: offset, upTo: end)
        offset += found.bytes
        guard found.differs else { continue }
        // Whole units, but for the last of the disk: the image has nothing in any part of them.
        let start = (offset - found.bytes) & ~(unit - 1)
        offset = min(start + most, (offset + unit - 1) & ~(unit - 1), end)
        return (Piece(offset: start, length: offset - start), (), offset)
      }
      return nil
    } body: { (piece, _, buffer, number) async throws(JobError) in
      try await self.compare(piece, buffer, image, number)
      withExtendedLifetime(buffer) {}
    }
    try await image.flush()
  }

  /// Whether the bytes from `offset` on may read otherwise, and how many of them.
  private func look(
    from offset: UInt64, upTo end: UInt64
  ) async throws(JobError) -> (differs: Bool, bytes: UInt64) {
    do throws(ImageError) {
      let start = GuestOffset(offset)
      let own = try await engine.ownStatus(at: start, length: end - offset)
      guard own.kind == .unallocated else { return (false, own.length) }
      let before = try await Self.status(old, start, own.length)
      // What the layers above the new backing file do not have is its own.
      if let index, before.depth >= index { return (false, before.length) }
      if before.kind == .data || before.kind == .compressed { return (true, before.length) }
      let after = try await Self.status(new, start, before.length)
      return (after.kind == .data || after.kind == .compressed, after.length)
    } catch { throw .image(error) }
  }

  private static func status(
    _ layer: (any BackingLayer)?, _ offset: GuestOffset, _ length: UInt64
  ) async throws(ImageError) -> BlockStatus {
    guard let layer else { return BlockStatus(kind: .unallocated, length: length) }
    return try await layer.status(at: offset, length: length)
  }

  /// Reads a piece through both chains and writes into the image what differs.
  private func compare(
    _ piece: Piece, _ buffer: IOBuffer, _ image: JobDisk, _ number: Int
  ) async throws(JobError) {
    let count = Int(piece.length)
    let (before, after) = (buffer.data.slice(0, count), buffer.data.slice(buffer.count / 2, count))
    try await read(old, before, piece, image.worker)
    try await read(new, after, piece, image.worker)
    var next = 0
    while let run = differences(before, after, from: next) {
      next = run.upperBound
      let data = before.slice(run.lowerBound, run.count)
      var part = Piece(offset: piece.offset + UInt64(run.lowerBound), length: UInt64(run.count))
        .request(.write, data)
      // In version 2 nothing else could say zero in the entries once there is data behind them.
      if engine.header.version >= 3 && data.isAllZeros {
        part = BlockRequest(.writeZeroes, offset: part.offset, length: part.length)
      }
      part.compresses = compresses && part.operation == .write
      try await image.serve(part, number)
    }
  }

  private func read(
    _ layer: (any BackingLayer)?, _ data: DataBuffer, _ piece: Piece, _ worker: Int
  ) async throws(JobError) {
    guard let layer else {
      if let memory = unsafe data.memory { unsafe memset(memory, 0, data.count) }
      return
    }
    do throws(ImageError) {
      try await layer.read(into: data, at: GuestOffset(piece.offset), worker: worker)
    } catch { throw .image(error) }
  }

  /// The next run of units that differ, from byte `first` of the piece on; zeros apart from all else.
  private func differences(
    _ before: DataBuffer, _ after: DataBuffer, from first: Int
  ) -> Range<Int>? {
    var run: Range<Int>?
    var isZero = false
    for next in stride(from: first, to: before.count, by: Int(unit)) {
      let part = next..<min(next + Int(unit), before.count)
      guard isDifferent(before, after, part) else {
        if run == nil { continue }
        break
      }
      let zero = before.slice(part.lowerBound, part.count).isAllZeros
      if run != nil && zero != isZero { break }
      isZero = zero
      run = (run?.lowerBound ?? part.lowerBound)..<part.upperBound
    }
    return run
  }

  private func isDifferent(_ one: DataBuffer, _ other: DataBuffer, _ range: Range<Int>) -> Bool {
    guard let one = unsafe one.memory, let other = unsafe other.memory else { return false }
    return unsafe memcmp(one + range.lowerBound, other + range.lowerBound, range.count) != 0
  }
}
