import BlockCore

/// The clusters that one worker has decompressed last.
///
/// The key is the place of the compressed bytes and a generation: the image's generation changes
/// before the place of any released compressed cluster can be used anew. A reader draws it when it has
/// found the place in the mapping and holds it by its stamp. A match then means that nothing was
/// released since another reader held the same place: the bytes are those that the mapping points at.
/// Drawn any earlier, the generation could be from before the release, and the place from after it.
final class DecompressedClusters {
  private static let capacity = 4
  let clusterSize: Int
  private struct Entry {
    var offset: UInt64
    var generation: UInt64
    let bytes: IOBuffer
  }
  private var entries: [Entry] = []
  private var oldest = 0

  init(clusterSize: Int) { self.clusterSize = clusterSize }

  /// The cluster decompressed from `offset`; nil if it is not here.
  func find(_ offset: HostOffset, generation: UInt64) -> IOBuffer? {
    for entry in entries
    where entry.offset == offset.bytes && entry.generation == generation {
      return entry.bytes
    }
    return nil
  }

  /// Room for one more cluster, in place of the oldest; nothing until ``keep(_:generation:)``.
  func place() -> IOBuffer {
    if entries.count < Self.capacity {
      entries.append(
        Entry(offset: .max, generation: .max, bytes: IOBuffer(count: clusterSize)))
      oldest = entries.count - 1
    } else {
      oldest = (oldest + 1) % Self.capacity
      entries[oldest].offset = .max
    }
    return entries[oldest].bytes
  }

  /// Names what was put into ``place()``.
  func keep(_ offset: HostOffset, generation: UInt64) {
    entries[oldest].offset = offset.bytes
    entries[oldest].generation = generation
  }
}
