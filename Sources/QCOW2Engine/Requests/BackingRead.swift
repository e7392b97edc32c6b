import BlockCore

extension Reader {
  /// Reads what the guest sees where this image has nothing of its own.
  ///
  /// The backing file is looked at below the virtual size only: what it has beyond must show
  /// neither in the last cluster nor in the VM state, nor once the disk has grown.
  func readBacking(
    into data: DataBuffer, at offset: GuestOffset, worker: Int
  ) async throws(ImageError) {
    guard let backing else { return try await storage.fillWithZeroes(data) }
    let inside = offset.bytes < size ? Int(min(size - offset.bytes, UInt64(data.count))) : 0
    if inside > 0 {
      try await backing.read(into: data.slice(0, inside), at: offset, worker: worker)
    }
    if inside < data.count {
      try await storage.fillWithZeroes(data.slice(inside, data.count - inside))
    }
  }
}
