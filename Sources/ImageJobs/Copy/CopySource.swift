import BlockCore
package import DiskImages
import QCOW2Engine

/// What is to be done with a range of the target.
package enum CopyKind: Sendable {
  /// The bytes of the source are written.
  case data
  /// The target is made to read as zeros.
  case zeroes
  /// The target is left as it is.
  case nothing
}

/// A disk, or a part of it, and the place in the target that gets its bytes.
package struct CopySource: Sendable {
  /// The disk that is read.
  package let disk: any OpenDisk
  /// The first byte of the part, in the disk.
  package private(set) var offset: UInt64 = 0
  /// The bytes of the part.
  package private(set) var count: UInt64
  /// Only what the image itself has is copied: what it takes from its backing file is left alone in
  /// the target, which has the same below it.
  package var isOwnLayerOnly = false
  /// Only what the first so many layers of the chain have is copied, and zeros where one of them ends before
  /// the disk; nil for all layers.
  var layers: Int?
  /// Only these ranges of the disk are copied, the rest is left alone in the target; nil for all.
  var selection: RangeSelection?

  /// All of a disk.
  package init(_ disk: any OpenDisk) {
    self.disk = disk
    count = disk.target.size
  }

  /// The bytes of the target that get the part: whole sectors, zeros behind the part.
  package var length: UInt64 { (count + 511) & ~511 }

  /// Leaves bytes of the part out: so many at its start, and what is more than `limit` then.
  package mutating func cut(skipping skipped: UInt64, upTo limit: UInt64) {
    let skipped = min(skipped, count)
    offset += skipped
    count = min(count - skipped, limit)
  }

  /// Says what the bytes from `offset` on are.
  ///
  /// - Parameters:
  ///   - offset: Counts from the start of the part.
  ///   - length: At least 1, inside the part.
  /// - Returns: What they are, and how many are alike: 1 to `length`.
  /// - Throws: What the engine finds wrong with the mapping.
  func status(
    at offset: UInt64, length: UInt64
  ) async throws(ImageError) -> (kind: CopyKind, length: UInt64) {
    if offset >= count { return (.zeroes, length) }
    var length = min(length, count - offset)
    let place = GuestOffset(self.offset + offset)
    if let selection {
      let found = try await selection.status(at: place.bytes)
      length = min(length, found.end - place.bytes)
      if !found.isSelected { return (.nothing, length) }
    }
    guard isOwnLayerOnly else {
      let found = try await disk.status(at: place, length: length)
      if let layers, found.depth >= layers { return (.nothing, found.length) }
      return (found.kind.isData ? .data : .zeroes, found.length)
    }
    guard let image = disk as? DiskImage else { return (.data, length) }
    let found = try await image.engine.ownStatus(at: place, length: length)
    switch found.kind {
    case .data, .compressed: return (.data, found.length)
    case .zero: return (.zeroes, found.length)
    case .unallocated: return (.nothing, found.length)
    }
  }
}

extension BlockStatus.Kind {
  /// Whether there are bytes to read; else the range reads as zeros.
  var isData: Bool { self == .data || self == .compressed }
}
