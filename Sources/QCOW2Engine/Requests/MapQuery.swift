package import BlockCore
import QCOW2Format

// What tools ask of the mapping. Answers hold until the next request changes it.

extension Image {
  /// Runs a query of the mapping under a stamp, as a request: no table that it has yet to read can be
  /// freed and used anew meanwhile.
  ///
  /// Waits while the gate is shut, for instance while the disk is resized.
  func query<R>(_ body: () async throws(ImageError) -> R) async throws(ImageError) -> R {
    try await withShortSlot { (job) async throws(ImageError) in
      await admission.enter(at: job.slot)
      defer { admission.leave(at: job.slot) }
      return try await body()
    }
  }

  /// A guest range that is all alike.
  package struct Allocation: Sendable {
    package var length: UInt64
    /// This image has the data, or says that there are zeros; else its backing file is asked.
    package var isAllocated: Bool
  }

  /// Tells whether this image, apart from its backing file, has the bytes at `offset`, and how many
  /// after them are alike: 1 to `length`.
  ///
  /// May read L2 slices from the host file; neighbouring answers can be alike, too.
  ///
  /// - Throws: ``ImageError/badRequest`` for a range that is empty or not inside the disk.
  package func allocation(
    at offset: GuestOffset, length: UInt64
  ) async throws(ImageError) -> Allocation {
    try await query { () async throws(ImageError) in
      guard length > 0, offset.bytes < size, length <= size - offset.bytes else {
        throw .badRequest
      }
      let found = try await mapping.extent(at: offset, length: length)
      if case .unallocated = found { return Allocation(length: found.length, isAllocated: false) }
      return Allocation(length: found.length, isAllocated: true)
    }
  }

  /// Whether the mapping alone says that all bytes of a range inside the disk are zeros.
  package func isMappedToZeroes(
    at offset: GuestOffset, length: UInt64
  ) async throws(ImageError) -> Bool {
    try await query { () async throws(ImageError) in
      guard offset.bytes <= size, length <= size - offset.bytes else { throw .badRequest }
      var done: UInt64 = 0
      while done < length {
        let found = try await mapping.extent(at: offset + done, length: length - done)
        switch found {
        case .zeroes: break
        case .unallocated: if reader.hasBacking { return false }
        case .data, .compressed: return false
        }
        done += found.length
      }
      return true
    }
  }
}
