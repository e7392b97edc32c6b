import BlockCore
import QCOW2Format

extension Reader {
  /// READ: finds the extents of the range, then reads those that need host I/O all at once.
  ///
  /// - Throws: ``ImageError/needsMemory`` if data must be transformed and `request.data` is no memory;
  ///   of several failures the one at the lowest guest offset.
  func read(_ request: BlockRequest, worker: Int) async throws(ImageError) {
    if let part = residentCompressed(request) {
      return try await readCompressed(
        part.descriptor, from: part.start, into: request.data, worker: worker)
    }
    try await mapping.withSlicesAhead(of: request) { () async throws(ImageError) in
      try await self.readExtents(request, worker: worker)
    }
  }

  private func readExtents(_ request: BlockRequest, worker: Int) async throws(ImageError) {
    var done: UInt64 = 0
    while done < request.length {
      let batch = try await gather(from: request.offset + done, request.length - done)
      try await read(batch, request.data.slice(Int(done), Int(batch.length)), worker: worker)
      done += batch.length
    }
  }

  /// The first extents of a range, neighbours joined, also across L2 slices.
  private func gather(
    from offset: GuestOffset, _ length: UInt64
  ) async throws(ImageError) -> ReadBatch {
    var batch = ReadBatch(start: offset)
    while batch.length < length {
      let extent = try await mapping.extent(
        at: offset + batch.length, length: length - batch.length)
      if !batch.add(extent) { break }
    }
    return batch
  }

  /// Reads all pieces of a batch; `data` is as long as the batch.
  private func read(
    _ batch: ReadBatch, _ data: DataBuffer, worker: Int
  ) async throws(ImageError) {
    let pieces = batch.pieces
    guard pieces.count > 1, ReadBatch.mayRunTasks else {
      for piece in pieces { try await read(piece, data, worker: worker) }
      return
    }
    // One long-lived request, a bounded number of short tasks: only for what has several extents.
    let failure = await withTaskGroup(of: ReadFailure?.self) { group in
      for piece in pieces.dropFirst() {
        group.addTask { await self.attempt(piece, data, worker: worker) }
      }
      var first = await self.attempt(pieces[0], data, worker: worker)
      for await failure in group {
        guard let failure else { continue }
        if first.map({ failure.dataOffset < $0.dataOffset }) ?? true { first = failure }
      }
      return first
    }
    if let failure { throw failure.error }
  }

  private func attempt(
    _ piece: ReadBatch.Piece, _ data: DataBuffer, worker: Int
  ) async -> ReadFailure? {
    do throws(ImageError) { try await read(piece, data, worker: worker) } catch {
      return ReadFailure(dataOffset: piece.dataOffset, error: error)
    }
    return nil
  }

  private func read(
    _ piece: ReadBatch.Piece, _ data: DataBuffer, worker: Int
  ) async throws(ImageError) {
    try await read(
      piece.extent, into: data.slice(piece.dataOffset, Int(piece.extent.length)),
      at: piece.guest, worker: worker)
  }

  /// Reads one extent, which starts at `offset` and is as long as `data`.
  func read(
    _ extent: Extent, into data: DataBuffer, at offset: GuestOffset, worker: Int
  ) async throws(ImageError) {
    switch extent {
    case .zeroes: try await storage.fillWithZeroes(data)
    case .unallocated: try await readBacking(into: data, at: offset, worker: worker)
    case .data(let host, _): try await guestData.read(into: data, at: host, guest: offset)
    case .compressed(let descriptor, let within, _):
      try await readCompressed(descriptor, from: within, into: data, worker: worker)
    }
  }
}

private struct ReadFailure: Sendable {
  let dataOffset: Int
  let error: ImageError
}
