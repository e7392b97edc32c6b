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

extension BackingLayer {
  /// The bytes of `buffer` at `offset` that lie inside the layer.
  func available(_ buffer: DataBuffer, at offset: GuestOffset) -> Int {
    offset.bytes < length ? Int(min(length - offset.bytes, UInt64(buffer.count))) : 0
  }
}

/// A raw backing file.
package final class RawLayer: BackingLayer {
  package let length: UInt64
  /// What host transfers call the file; nil keeps it off the hit path.
  let fileNumber: UInt8?
  private let storage: ImageStorage

  /// - Parameters:
  ///   - file: opened for reading.
  ///   - length: of the file in bytes, at the time of opening.
  ///   - fileNumber: what host transfers call the file; nil if none may.
  package init(_ file: any HostFile, length: UInt64, fileNumber: UInt8? = nil) {
    self.length = length
    self.fileNumber = fileNumber
    storage = ImageStorage(file: file, health: ImageHealth())
  }

  package func read(
    into buffer: DataBuffer, at offset: GuestOffset
  ) async throws(ImageError) {
    let available = available(buffer, at: offset)
    if available > 0 {
      try await storage.read(into: buffer.slice(0, available), at: HostOffset(offset.bytes))
    }
    if available < buffer.count {
      try await storage.fillWithZeroes(buffer.slice(available, buffer.count - available))
    }
  }
}

/// A qcow2 image as a backing file: opened for reading, its caches shared by all workers.
package final class ImageLayer: BackingLayer {
  package let image: Image
  package var length: UInt64 { image.size }

  /// - Parameter image: opened with `readOnly`.
  package init(_ image: Image) { self.image = image }

  package func read(
    into buffer: DataBuffer, at offset: GuestOffset
  ) async throws(ImageError) {
    let available = available(buffer, at: offset)
    if available > 0 {
      let part = buffer.slice(0, available)
      try await image.read(
        BlockRequest(.read, offset: offset, length: UInt64(available), data: part))
    }
    if available < buffer.count {
      try await image.storage.fillWithZeroes(buffer.slice(available, buffer.count - available))
    }
  }
}
