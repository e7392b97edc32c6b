import BlockCore
import QCOW2Format

/// Where everything lies in a new image: no holes between, so every cluster below ``end`` has
/// a refcount of one and all the others have none.
///
/// In order: header, refcount table, refcount blocks, L1 table, L2 tables, encryption header, data.
struct ImageLayout: Equatable {
  let geometry: ClusterGeometry
  let l1Entries: UInt64
  /// 0 without preallocation.
  let l2Tables: UInt64
  /// Guest clusters that are mapped; 0 without preallocation.
  let mappedClusters: UInt64
  /// Of those, the ones in this file: none with an external data file.
  let dataClusters: UInt64
  /// Of the LUKS header; 0 without one.
  let encryptionClusters: UInt64
  let refcounts: RefcountPlan

  init(_ options: CreateOptions) throws(OptionError) {
    geometry = ClusterGeometry(
      clusterBits: options.clusterBits, refcountOrder: options.refcountOrder,
      extendedL2: options.extendedL2)
    let geometry = self.geometry
    let size = options.virtualSize
    l1Entries = geometry.l1EntriesNeeded(forSize: size)
    guard l1Entries <= FormatLimit.l1Bytes / 8 else {
      throw .sizeTooLarge(
        size: size, largest: FormatLimit.l1Bytes / 8 * geometry.bytesPerL2Table,
        clusterSize: geometry.clusterSize)
    }
    let isPreallocated = options.mapping != .off
    l2Tables = isPreallocated ? l1Entries : 0
    mappedClusters = isPreallocated ? geometry.clusters(covering: size) : 0
    dataClusters = options.dataFile == nil ? mappedClusters : 0
    encryptionClusters = geometry.clusters(
      covering: UInt64(options.encryption?.headerLength ?? 0))
    // At most 2^42 + 2^22 + 2^17 clusters: nothing below can overflow.
    let others =
      1 + geometry.clusters(covering: l1Entries * 8) + l2Tables + encryptionClusters
      + dataClusters
    do throws(RefcountPlan.TableTooLong) {
      refcounts = try RefcountPlan(newImageWith: others, geometry)
      if end <= geometry.endOfHostClusters { return }
    } catch { throw .refcountTableTooLarge(bytes: error.entries * 8) }
    throw .refcountTableTooLarge(bytes: UInt64(refcounts.numbers.count) * 8)
  }

  private var l1Cluster: HostCluster { refcounts.clusters.upperBound }
  private var l1Clusters: UInt64 { geometry.clusters(covering: l1Entries * 8) }

  /// Host offset 0, as QEMU writes it, if there is no L1 table.
  var l1Table: HostOffset { l1Entries == 0 ? HostOffset(0) : geometry.start(of: l1Cluster) }
  func l2Table(_ index: UInt64) -> HostOffset { geometry.start(of: l1Cluster + l1Clusters + index) }
  /// Where the LUKS header lies, if there is one.
  var encryptionHeader: HostOffset { l2Table(l2Tables) }
  /// Where the data of guest cluster 0 lies.
  var data: HostOffset { l2Table(l2Tables + encryptionClusters) }

  /// The end of the clusters in use: all below are.
  var end: HostCluster {
    l1Cluster + l1Clusters + l2Tables + encryptionClusters + dataClusters
  }

  /// The length of the file: QEMU's, which without preallocation ends with the last L1 entry.
  var fileLength: UInt64 {
    if l2Tables > 0 || encryptionClusters > 0 || l1Entries == 0 {
      return geometry.start(of: end).bytes
    }
    return l1Table.bytes + l1Entries * 8
  }
}
