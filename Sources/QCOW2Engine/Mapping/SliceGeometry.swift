import BlockCore
import QCOW2Format

/// The part of a guest range that one L2 slice maps.
struct SlicePart: Sendable {
  /// The guest clusters, first to last; all in one slice.
  let clusters: Range<GuestCluster>
  /// The bytes of the part; may start and end inside a cluster.
  let start: GuestOffset
  let length: UInt64
  let l1Index: Int
  /// The index of the first cluster's entry inside its slice.
  let firstEntry: Int
  /// The byte offset of the slice inside its L2 table.
  let sliceOffset: UInt64
}

extension SlicePart {
  /// No part of anything.
  static let none = SlicePart(
    clusters: GuestCluster(0)..<GuestCluster(0), start: GuestOffset(0), length: 0, l1Index: 0,
    firstEntry: 0, sliceOffset: 0)
}

/// How guest ranges fall onto L2 slices.
struct SliceGeometry: Sendable {
  let cluster: ClusterGeometry
  /// log2 of the entries in a slice.
  let entryBits: Int

  init(cluster: ClusterGeometry, sliceSize: Int) {
    self.cluster = cluster
    entryBits = sliceSize.trailingZeroBitCount - cluster.l2EntryBits
  }

  @inline(__always) var entriesPerSlice: UInt64 { 1 << UInt64(entryBits) }
  /// The guest bytes that one slice maps.
  var bytesPerSlice: UInt64 { entriesPerSlice << UInt64(cluster.clusterBits) }

  /// The first part of the range that starts at `start` and has `length` bytes, at least 1.
  func part(from start: GuestOffset, length: UInt64) -> SlicePart {
    let first = cluster.cluster(of: start)
    let sliceEnd = (first.number | (entriesPerSlice - 1)) + 1
    let room = (sliceEnd << UInt64(cluster.clusterBits)) &- start.bytes
    let count = min(length, room)
    let last = cluster.cluster(of: start + (count - 1))
    let index = cluster.l2Index(of: start)
    let firstEntry = index & (entriesPerSlice - 1)
    return SlicePart(
      clusters: first..<(last + 1), start: start, length: count,
      l1Index: Int(cluster.l1Index(of: start)), firstEntry: Int(firstEntry),
      sliceOffset: (index - firstEntry) << UInt64(cluster.l2EntryBits))
  }
}
