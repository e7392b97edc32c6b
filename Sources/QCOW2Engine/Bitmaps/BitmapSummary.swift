import QCOW2Format

/// What the directory of an image says of one persistent bitmap.
package struct BitmapSummary: Equatable, Sendable {
  package let name: String
  /// In bytes; a power of two.
  package let granularity: UInt64
  /// It follows every change of the disk.
  package let isEnabled: Bool
  /// Its bits are not to be trusted: it was marked in use.
  package let isInconsistent: Bool
}

extension Image {
  /// The persistent bitmaps, in the order of the directory; none if there is no directory that counts.
  ///
  /// - Throws: ``ImageError/bitmapRefused(_:)`` if the directory breaks the format, or what the host says.
  package func bitmaps() async throws(ImageError) -> [BitmapSummary] {
    try await StoredBitmaps.read(reader.storage).records.map { record in
      let flags = record.entry.flags
      return BitmapSummary(
        name: record.name, granularity: 1 << UInt64(record.entry.granularityBits),
        isEnabled: flags.contains(.auto), isInconsistent: flags.contains(.inUse))
    }
  }
}
