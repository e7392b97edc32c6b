package import BlockCore

/// What an image reads where it has nothing of its own: the next image of a backing chain.
///
/// Read-only and shared by all workers.
package protocol BackingLayer: AnyObject, Sendable {
  /// The length in bytes; need not be a multiple of a sector or cluster, nor that of the overlay.
  var length: UInt64 { get }

  /// Fills `buffer`, plain memory, from `offset` on; what lies beyond ``length`` reads as zeros.
  func read(into buffer: DataBuffer, at offset: GuestOffset) async throws(ImageError)
}

/// A raw backing file.
package final class RawLayer: BackingLayer {
  package let length: UInt64
  private let storage: ImageStorage

  /// - Parameters:
  ///   - file: opened for reading.
  ///   - length: of the file in bytes, at the time of opening.
  package init(_ file: any HostFile, length: UInt64) {
    self.length = length
    storage = ImageStorage(file: file, health: ImageHealth())
  }

  package func read(
    into buffer: DataBuffer, at offset: GuestOffset
  ) async throws(ImageError) {
    let available = offset.bytes < length ? Int(min(length - offset.bytes, UInt64(buffer.count))) : 0
    if available > 0 {
      try await storage.read(into: buffer.slice(0, available), at: HostOffset(offset.bytes))
    }
    if available < buffer.count {
      try await storage.fillWithZeroes(buffer.slice(available, buffer.count - available))
    }
  }
}
