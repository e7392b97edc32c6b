package import BlockCore
import Uring

/// Whole transfers out of partial ones.
extension RingHostFile {
  /// The most bytes that one operation is asked for; the kernel's own limit is just below 2 GiB.
  private static let pieceBytes = 1 << 30
  /// The size of the bounce buffer for memory that direct I/O cannot use.
  private static let bounceBytes = 1 << 20

  package func read(into buffer: DataBuffer, at offset: HostOffset) async throws(Errno) {
    assertOpen()
    if needsBounce(buffer, offset) {
      try await readThroughBounce(buffer, offset.bytes)
    } else {
      try await readWhole(buffer, offset.bytes)
    }
  }

  package func write(from buffer: DataBuffer, at offset: HostOffset) async throws(Errno) {
    assertOpen()
    if isDirect, let memory = unsafe buffer.memory, !isAligned(UInt(bitPattern: memory)) {
      try unsafe await writeThroughBounce(memory, buffer.count, offset.bytes)
    } else {
      try await writeWhole(buffer, offset.bytes)
    }
  }

  // MARK: Whole transfers

  /// Reads all of `buffer`.
  ///
  /// A read that ends early is continued; a read of nothing, or one that ends off the alignment of
  /// direct I/O, has met the end of the file: the rest is zeros.
  func readWhole(_ buffer: DataBuffer, _ offset: UInt64) async throws(Errno) {
    var done = 0
    var attempts = Attempts()
    while done < buffer.count {
      let piece = buffer.slice(done, min(buffer.count - done, Self.pieceBytes))
      let result = await rawRead(piece, at: offset + UInt64(done))
      if result < 0 {
        try await attempts.retry(after: result)
        continue
      }
      done += Int(result)
      if result == 0 || done % traits.offsetAlignment != 0 {
        try await fillWithZeroes(buffer.slice(done, buffer.count - done))
        return
      }
    }
  }

  /// Writes all of `buffer`; a write of nothing is an error, as it would not end otherwise.
  func writeWhole(_ buffer: DataBuffer, _ offset: UInt64) async throws(Errno) {
    var done = 0
    var attempts = Attempts()
    while done < buffer.count {
      let piece = buffer.slice(done, min(buffer.count - done, Self.pieceBytes))
      let result = await rawWrite(piece, at: offset + UInt64(done))
      if result < 0 {
        try await attempts.retry(after: result)
        continue
      }
      if result == 0 { throw .io }
      done += Int(result)
    }
  }

  /// Fills memory, or a registered buffer through the ring's zero file.
  package func fillWithZeroes(_ buffer: DataBuffer) async throws(Errno) {
    if let memory = unsafe buffer.memory {
      unsafe memory.initializeMemory(as: UInt8.self, repeating: 0, count: buffer.count)
      return
    }
    var done = 0
    while done < buffer.count {
      guard let loop = WorkerLoop.current, let zeroes = loop.zeroFile else { throw .invalid }
      let result = await loop.perform(
        .read(zeroes, into: buffer.slice(done, buffer.count - done), at: 0))
      if result <= 0 { throw result == 0 ? .io : Errno(-result) }
      done += Int(result)
    }
  }

  // MARK: Bounce

  private func isAligned(_ address: UInt) -> Bool {
    address % UInt(memoryAlignment) == 0
  }

  private func needsBounce(_ buffer: DataBuffer, _ offset: HostOffset) -> Bool {
    guard isDirect, let memory = unsafe buffer.memory else { return false }
    let alignment = traits.offsetAlignment
    return !isAligned(UInt(bitPattern: memory)) || offset.bytes % UInt64(alignment) != 0
      || buffer.count % alignment != 0
  }

  /// Reads into memory or at an offset that direct I/O cannot take, by way of aligned memory.
  private func readThroughBounce(_ buffer: DataBuffer, _ offset: UInt64) async throws(Errno) {
    guard let memory = unsafe buffer.memory else { throw .invalid }
    let alignment = UInt64(traits.offsetAlignment)
    let bounce = IOBuffer(count: Self.bounceBytes)
    var done = 0
    while done < buffer.count {
      let position = offset + UInt64(done)
      let skipped = Int(position % alignment)
      let count = min(buffer.count - done, bounce.count - skipped)
      let covered = (skipped + count + Int(alignment) - 1) & ~(Int(alignment) - 1)
      try await readWhole(bounce.data.slice(0, covered), position - UInt64(skipped))
      unsafe (memory + done).copyMemory(from: bounce.base + skipped, byteCount: count)
      done += count
    }
  }

  /// Writes from memory that direct I/O cannot take.
  ///
  /// The offset and the count are aligned, or the kernel refuses them.
  private func writeThroughBounce(
    _ memory: UnsafeMutableRawPointer, _ total: Int, _ offset: UInt64
  ) async throws(Errno) {
    let bounce = IOBuffer(count: min(total, Self.bounceBytes))
    var done = 0
    while done < total {
      let count = min(total - done, bounce.count)
      unsafe bounce.base.copyMemory(from: memory + done, byteCount: count)
      try await writeWhole(bounce.data.slice(0, count), offset + UInt64(done))
      done += count
    }
  }
}
