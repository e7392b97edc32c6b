import BlockCore
import QCOW2Format

/// The bits of one persistent bitmap as ranges of the guest's disk, in ascending order.
///
/// Reads one cluster of the bitmap at a time. Ranges that touch may come apart at the ends of such
/// clusters. Nobody removes the bitmap meanwhile.
package struct DirtyRanges {
  private enum Origin {
    case file(ImageStorage, entries: [UInt64], fileLength: UInt64)
    case memory(TrackedBits)
  }

  private enum Chunk {
    case same(Bool)
    case words(IOBuffer)
  }

  /// The guest bytes that one bit stands for.
  package let granularity: UInt64
  private let diskSize: UInt64
  private let bitCount: UInt64
  private let geometry: ClusterGeometry
  private let origin: Origin
  /// The next bit to look at, and the chunk it lies in.
  private var at: UInt64 = 0
  private var chunk: (index: UInt64, bits: Chunk)?

  /// The bits of a bitmap that is tracked: those that requests have asked for.
  init(_ bitmap: TrackedBitmap, diskSize: UInt64) {
    self.init(
      .memory(bitmap.bits), granularityBits: bitmap.granularityBits, bitmap.geometry, diskSize)
  }

  /// The bits of a bitmap on the host file; `entry` is valid for the disk.
  ///
  /// - Throws: ``ImageError/bitmapRefused(_:)`` if the table lies beyond the end of the file.
  init(
    _ entry: BitmapEntry, _ storage: ImageStorage, _ geometry: ClusterGeometry, diskSize: UInt64
  ) async throws(ImageError) {
    let fileLength = try await storage.length()
    let entries = try await BitmapTable.read(entry, storage, fileLength: fileLength)
    self.init(
      .file(storage, entries: entries, fileLength: fileLength),
      granularityBits: entry.granularityBits, geometry, diskSize)
  }

  private init(
    _ origin: Origin, granularityBits: UInt8, _ geometry: ClusterGeometry, _ diskSize: UInt64
  ) {
    self.origin = origin
    self.geometry = geometry
    self.diskSize = diskSize
    granularity = 1 << UInt64(granularityBits)
    bitCount = diskSize / granularity + (diskSize % granularity == 0 ? 0 : 1)
  }

  private var bitsPerChunk: UInt64 { geometry.clusterSize * 8 }

  /// The next range, in bytes and cut to the disk; nil at the end.
  package mutating func next() async throws(ImageError) -> Range<UInt64>? {
    while at < bitCount {
      let index = at / bitsPerChunk
      let end = min((index + 1) * bitsPerChunk, bitCount)
      let bits = try await load(index)
      guard let first = Self.find(true, bits, from: at, to: end, base: index * bitsPerChunk) else {
        at = end
        continue
      }
      let last = Self.find(false, bits, from: first, to: end, base: index * bitsPerChunk) ?? end
      at = last
      // A disk has whole sectors, whatever the header says.
      let size = diskSize & ~511
      let start = min(first * granularity, size)
      if start == size { return nil }
      return start..<(last == bitCount ? size : min(last * granularity, size))
    }
    return nil
  }

  private mutating func load(_ index: UInt64) async throws(ImageError) -> Chunk {
    if let chunk, chunk.index == index { return chunk.bits }
    let bits = try await read(index)
    chunk = (index, bits)
    return bits
  }

  private func read(_ index: UInt64) async throws(ImageError) -> Chunk {
    let buffer = IOBuffer(count: Int(geometry.clusterSize))
    switch origin {
    case .memory(let bits):
      let words = buffer.count / 8
      unsafe bits.copyExact(Int(index) * words..<Int(index + 1) * words, to: buffer.base)
    case .file(let storage, let entries, let fileLength):
      let entry = BitmapTableEntry(raw: entries[Int(index)])
      if let problem = entry.faults(geometry, fileLength: fileLength).first {
        throw .bitmapRefused(
          .damaged(
            .format(
              .badEntry(
                name: "bitmap table entry", index: index, value: entry.raw, problem: problem))))
      }
      guard let cluster = entry.cluster else { return .same(entry.isAllOnes) }
      try await storage.read(into: buffer, at: cluster)
    }
    return .words(buffer)
  }

  /// The first bit in `from..<to` that is as wanted; nil if there is none.
  private static func find(
    _ wanted: Bool, _ chunk: Chunk, from: UInt64, to: UInt64, base: UInt64
  ) -> UInt64? {
    switch chunk {
    case .same(let isSet): return isSet == wanted && from < to ? from : nil
    case .words(let buffer):
      var bit = from
      while bit < to {
        let inside = bit - base
        let raw = unsafe buffer.base.load(fromByteOffset: Int(inside / 64) * 8, as: UInt64.self)
        let value =
          (wanted ? UInt64(littleEndian: raw) : ~UInt64(littleEndian: raw)) >> (inside & 63)
        if value != 0 {
          let found = bit + UInt64(value.trailingZeroBitCount)
          return found < to ? found : nil
        }
        bit = base + (inside | 63) + 1
      }
      return nil
    }
  }
}

/// The tables of bitmaps on the host file.
enum BitmapTable {
  /// Reads the entries of a table, whatever they say; `entry` is valid for the disk, which bounds the
  /// length.
  static func read(
    _ entry: BitmapEntry, _ storage: ImageStorage, fileLength: UInt64
  ) async throws(ImageError) -> [UInt64] {
    let length = UInt64(entry.tableSize) * 8
    guard entry.table.bytes <= fileLength, length <= fileLength - entry.table.bytes else {
      throw .bitmapRefused(
        .damaged(
          .format(
            .truncated(
              structure: "bitmap table", needed: entry.table.bytes &+ length,
              available: fileLength))))
    }
    // In whole sectors, for files that are used directly.
    let buffer = IOBuffer(count: Int((length + 511) & ~511))
    try await storage.read(into: buffer, at: entry.table)
    return buffer.withBytes { bytes in
      (0..<Int(entry.tableSize)).map { bytes.be64($0 * 8) }
    }
  }
}
