package import BlockCore

/// What an image reads where it has nothing of its own: the next image of a backing chain.
///
/// Read-only and shared by all workers.
package protocol BackingLayer: AnyObject, Sendable {
  /// The length in bytes; need not be a multiple of a sector or cluster, nor that of the overlay.
  var length: UInt64 { get }

  /// Fills `buffer` from `offset` on; what lies beyond ``length`` reads as zeros.
  ///
  /// - Throws: ``ImageError/needsMemory`` if `buffer` is no memory and the data must be
  ///   transformed; never an error that speaks of the corruption of the image above.
  func read(
    into buffer: DataBuffer, at offset: GuestOffset, worker: Int
  ) async throws(ImageError)

  /// Hit path: maps a range for reading without allocation, I/O or waiting; call with no lock held.
  ///
  /// - Returns: the bytes mapped, from `offset` on; 0 when the slow path must take over.
  func plan(_ offset: GuestOffset, _ length: UInt64, into plan: inout PlanBuilder) -> UInt64

  /// What the bytes from `offset` on are, and how many are alike: 1 to `length`, which is at least 1.
  ///
  /// A ``BlockStatus/depth`` of 0 stands for this layer.
  func status(at offset: GuestOffset, length: UInt64) async throws(ImageError) -> BlockStatus
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
  private let fileNumber: UInt8?
  let storage: ImageStorage

  /// - Parameters:
  ///   - file: opened for reading.
  ///   - length: of the file in bytes, at the time of opening.
  ///   - fileNumber: what host transfers call the file; nil if none may.
  ///   - reporter: hears of failures.
  package init(
    _ file: any HostFile, length: UInt64, fileNumber: UInt8? = nil, reporter: EventReporter? = nil
  ) {
    self.length = length
    self.fileNumber = fileNumber
    storage = ImageStorage(file: file, health: ImageHealth(reporter: reporter))
  }

  package func read(
    into buffer: DataBuffer, at offset: GuestOffset, worker: Int
  ) async throws(ImageError) {
    let available = available(buffer, at: offset)
    // Direct I/O reads no part of a sector; plain memory can be read through a buffer of whole ones.
    if available & 511 != 0 && !buffer.isMemory { throw .needsMemory }
    if available > 0 {
      try await storage.read(into: buffer.slice(0, available), at: HostOffset(offset.bytes))
    }
    if available < buffer.count {
      try await storage.fillWithZeroes(buffer.slice(available, buffer.count - available))
    }
  }
}

extension RawLayer {
  package func plan(
    _ offset: GuestOffset, _ length: UInt64, into plan: inout PlanBuilder
  ) -> UInt64 {
    guard let fileNumber else { return 0 }
    // Whole sectors only: the one that the file ends in is for the slow path.
    let end = self.length & ~511
    if offset.bytes >= end {
      return offset.bytes >= self.length && plan.appendZeroes(length) ? length : 0
    }
    let count = min(length, end - offset.bytes)
    return plan.append(file: fileNumber, HostOffset(offset.bytes), count) ? count : 0
  }
}

extension ImageLayer {
  package func plan(
    _ offset: GuestOffset, _ length: UInt64, into plan: inout PlanBuilder
  ) -> UInt64 {
    if offset.bytes >= self.length { return plan.appendZeroes(length) ? length : 0 }
    return image.planner.planRead(offset, min(length, self.length - offset.bytes), &plan)
  }
}

/// A qcow2 image as a backing file: opened for reading, its caches shared by all workers.
package final class ImageLayer: BackingLayer {
  package let image: Image
  package var length: UInt64 { image.size }

  /// - Parameter image: opened with `readOnly`.
  package init(_ image: Image) { self.image = image }

  package func read(
    into buffer: DataBuffer, at offset: GuestOffset, worker: Int
  ) async throws(ImageError) {
    let available = available(buffer, at: offset)
    if available > 0 {
      let part = buffer.slice(0, available)
      do throws(ImageError) {
        try await image.reader.read(
          BlockRequest(.read, offset: offset, length: UInt64(available), data: part),
          worker: worker)
      } catch {
        // Its damage must not be taken for that of the image above, which would be marked corrupt.
        guard error.isDamage else { throw error }
        await image.faults.report(error)
        throw .brokenBacking(error)
      }
    }
    if available < buffer.count {
      try await image.reader.storage.fillWithZeroes(
        buffer.slice(available, buffer.count - available))
    }
  }
}
