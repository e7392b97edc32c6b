import BlockCore
import QCOW2Format
import Synchronization

/// The refcount table and the cached slices of refcount blocks.
///
/// Refcounts change only under ``ClusterAllocator``'s mutex; slices may be read at any time.
final class RefcountStore: @unchecked Sendable {  // why: `tableBox` is swapped under `lock`
  let geometry: ClusterGeometry
  let cache: SliceCache
  private let lock = FutexLock(.leaf)
  private var tableBox: DiskTable

  init(geometry: ClusterGeometry, table: DiskTable, cache: SliceCache) {
    self.geometry = geometry
    self.cache = cache
    tableBox = table
  }

  /// The refcount table in use.
  var table: DiskTable { lock.withLock { tableBox } }

  /// Replaces the table after growth.
  func replaceTable(_ table: DiskTable) {
    let old = lock.withLock { () -> DiskTable in
      let old = tableBox
      tableBox = table
      return old
    }
    // Freed here, with no lock held.
    withExtendedLifetime(old) {}
  }

  /// The refcounts in one cached slice.
  var entriesPerSlice: UInt64 {
    (UInt64(cache.sliceSize) << 3) >> UInt64(geometry.refcountOrder)
  }

  /// The index into the refcount table for a host cluster.
  func tableIndex(of cluster: HostCluster) -> UInt64 {
    geometry.refcountBlock(of: cluster)
  }

  /// The clusters whose refcounts are in the same slice as that of `cluster`.
  func sliceRange(of cluster: HostCluster) -> Range<HostCluster> {
    let first = HostCluster(cluster.number & ~(entriesPerSlice &- 1))
    return first..<(first + entriesPerSlice)
  }

  /// Where the slice with the refcount of `cluster` lies; nil if no block covers it.
  func sliceKey(of cluster: HostCluster) throws(ImageError) -> HostOffset? {
    let index = tableIndex(of: cluster)
    let table = self.table
    guard index < UInt64(table.count) else { return nil }
    let entry = RefcountTableEntry(raw: table.load(Int(index)))
    guard let block = entry.block else { return nil }
    let faults = entry.faults(geometry, fileLength: FormatLimit.hostOffset)
    guard faults.isEmpty else {
      throw .format(
        .badEntry(
          name: "refcount table entry", index: index, value: entry.raw,
          problem: faults.contains(.reservedBits) ? .reservedBits : .unaligned))
    }
    let inBlock = UInt64(geometry.indexInRefcountBlock(of: cluster))
    let byte = (inBlock << UInt64(geometry.refcountOrder)) >> 3
    return cache.key(of: block + byte)
  }

  /// The position of a cluster's refcount inside its slice.
  func indexInSlice(_ cluster: HostCluster) -> Int {
    Int(cluster.number & (entriesPerSlice &- 1))
  }
}
