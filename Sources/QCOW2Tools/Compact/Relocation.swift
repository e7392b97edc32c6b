import BlockCore
import QCOW2Format

/// Compressed data of one cluster that moves.
struct CompressedMove {
  /// The first byte, and the bytes up to the end of the last sector.
  let offset: HostOffset
  let length: UInt64
  /// How many L2 entries lead to it, each as often as its table is referred to.
  var references: UInt64
  /// Where it goes; at the same place inside a sector.
  var target = HostOffset(0)

  /// The first sector, and the one behind the last, of the file.
  var sectors: Range<UInt64> { offset.bytes >> 9..<(offset.bytes + length) >> 9 }

  /// The order in which moves are looked up.
  static func precedes(_ left: Self, _ right: Self) -> Bool {
    (left.offset, left.length) < (right.offset, right.length)
  }
}

/// Where host clusters and compressed data go in one round of a compaction.
///
/// A source has at most one target, so all references to it change alike. Takes 16 bytes for each
/// cluster and 32 for each piece of compressed data.
struct Relocation {
  let geometry: ClusterGeometry
  /// Whole clusters, ascending by their sources.
  private(set) var moves: [(source: HostCluster, target: HostCluster)] = []
  /// Compressed data, in the order of ``CompressedMove/precedes(_:_:)``.
  private(set) var compressed: [CompressedMove] = []

  init(_ geometry: ClusterGeometry) { self.geometry = geometry }

  var isEmpty: Bool { moves.isEmpty && compressed.isEmpty }

  /// The bytes that are copied.
  var bytes: UInt64 {
    UInt64(moves.count) << UInt64(geometry.clusterBits)
      + compressed.reduce(0) { $0 + UInt64($1.sectors.count) << 9 }
  }

  /// Adds moves of clusters; ``sort()`` comes after the last.
  mutating func add(_ source: HostCluster, to target: HostCluster) {
    moves.append((source, target))
  }

  mutating func add(_ pieces: [CompressedMove]) { compressed += pieces }

  mutating func sort() {
    moves.sort { $0.source < $1.source }
    compressed.sort(by: CompressedMove.precedes)
  }

  /// Where a cluster goes; nil if it stays.
  func target(of cluster: HostCluster) -> HostCluster? {
    var (low, high) = (0, moves.count)
    while low < high {
      let middle = (low + high) / 2
      if moves[middle].source < cluster { low = middle + 1 } else { high = middle }
    }
    return low < moves.count && moves[low].source == cluster ? moves[low].target : nil
  }

  /// Where what starts at an aligned offset goes; nil if it stays.
  func target(of offset: HostOffset) -> HostOffset? {
    target(of: geometry.hostCluster(of: offset)).map(geometry.start)
  }

  /// The entry of an L1 table, a bitmap table or for plain data, leading to the new place; nil if it stays.
  func pointer(_ raw: UInt64) -> UInt64? {
    let offset = raw & EntryBits.offset
    guard offset != 0, let target = target(of: HostOffset(offset)) else { return nil }
    return raw & ~EntryBits.offset | target.bytes
  }

  /// The L2 entry, leading to the new place; nil if it stays.
  func entry(_ raw: UInt64) -> UInt64? {
    guard raw & EntryBits.compressed != 0 else { return pointer(raw) }
    let old = CompressedDescriptor(L2Entry(raw: raw), geometry)
    let wanted = CompressedMove(offset: old.offset, length: old.length, references: 0)
    var (low, high) = (0, compressed.count)
    while low < high {
      let middle = (low + high) / 2
      if CompressedMove.precedes(compressed[middle], wanted) {
        low = middle + 1
      } else {
        high = middle
      }
    }
    guard low < compressed.count, compressed[low].offset == old.offset,
      compressed[low].length == old.length
    else { return nil }
    let (difference, target) = (old.offset.bytes, compressed[low].target.bytes)
    // The offset is the lowest field; the number of sectors stays.
    return raw - difference + target
  }
}
