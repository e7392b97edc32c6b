import BlockCore
import QCOW2Format

extension Image {
  /// READ, extent by extent.
  ///
  /// - Throws: ``ImageError/needsMemory`` if data must be transformed and `request.data` is no memory.
  func read(_ request: BlockRequest, worker: Int) async throws(ImageError) {
    var done: UInt64 = 0
    while done < request.length {
      let offset = request.offset + done
      let extent = try await extent(at: offset, length: request.length - done)
      let data = request.data.slice(Int(done), Int(extent.length))
      if options.copyOnRead, case .unallocated = extent,
        let length = try await readAndKeep(into: data, at: offset, worker: worker)
      {
        done += length
        continue
      }
      try await read(extent, into: data, at: offset, worker: worker)
      done += extent.length
    }
  }

  /// Reads one extent, which starts at `offset` and is as long as `data`.
  private func read(
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
