import BlockCore
import QCOW2Format

/// What `open` looks at to know where metadata lies.
extension Image {
  /// Maps all metadata of the active disk; looks at no L2 table and no refcount block.
  ///
  /// - Throws: ``ImageError/damaged(_:)``, if the image is to be written, for L1 entries that cannot
  ///   be used, for refcount blocks beyond the end of the file, which would count what is in use as
  ///   free, and for metadata that lies inside other metadata.
  static func survey(
    _ head: HeaderCluster, _ l1: DiskTable, _ refcountTable: DiskTable,
    _ snapshots: SnapshotTable, fileLength: UInt64, forWriting: Bool
  ) throws(ImageError) -> MetadataMap {
    let areas = FixedAreas(head, refcountTable, snapshots)
    if forWriting { try areas.requireDisjoint() }
    let map = try MetadataMap(
      fixed: areas.unmovable, refcountTable: areas.refcountTable, l1Table: areas.l1Table,
      expectedTables: l1.countUsed() + refcountTable.countUsed() + areas.snapshotTable.count + 64)
    if forWriting { for cluster in areas.snapshotTable { map.tables.insert(cluster) } }
    let geometry = head.header.geometry
    if forWriting { try snapshots.addL1Tables(to: map, geometry, fileLength: fileLength) }
    try addL2Tables(geometry, l1, to: map, fileLength: fileLength, forWriting)
    try addRefcountBlocks(geometry, refcountTable, to: map, fileLength: fileLength, forWriting)
    return map
  }

  /// A writer takes no table that two entries share: what one of them frees, the other would lose.
  private static func addL2Tables(
    _ geometry: ClusterGeometry, _ l1: DiskTable, to map: MetadataMap, fileLength: UInt64,
    _ forWriting: Bool
  ) throws(ImageError) {
    for index in 0..<l1.count {
      let raw = l1.load(index)
      if raw == 0 { continue }
      let entry = L1Entry(raw: raw)
      // A reader meets what is wrong with an entry when it needs it.
      if forWriting { try requireUsable(entry, index: index, geometry, fileLength: fileLength) }
      guard let table = entry.l2Table else { continue }
      let cluster = geometry.hostCluster(of: table)
      map.noteMapped(cluster)
      let isFirst = map.tables.insert(cluster)
      if forWriting && (!isFirst || map.fixedContains(cluster)) {
        throw overlap("L1 entry", index, raw)
      }
    }
  }

  static func requireUsable(
    _ entry: L1Entry, index: Int, _ geometry: ClusterGeometry, fileLength: UInt64
  ) throws(ImageError) {
    let judged = entry.leadsBeyond(fileLength) ? entry.unusable : entry
    do throws(ImageError) {
      try L2Tables.check(judged, index: index, geometry)
    } catch {
      guard case .format(let problem) = error else { throw error }
      throw .damaged(problem)
    }
  }

  private static func addRefcountBlocks(
    _ geometry: ClusterGeometry, _ table: DiskTable, to map: MetadataMap, fileLength: UInt64,
    _ forWriting: Bool
  ) throws(ImageError) {
    for index in 0..<table.count {
      let entry = RefcountTableEntry(raw: table.load(index))
      guard let block = entry.block else { continue }
      if forWriting && entry.faults(geometry, fileLength: fileLength).contains(.beyondEnd) {
        throw .damaged(
          .badEntry(
            name: "refcount table entry", index: UInt64(index), value: entry.raw,
            problem: .beyondEnd))
      }
      let cluster = geometry.hostCluster(of: block)
      map.noteMapped(cluster)
      let isAlone = map.tables.insert(cluster)
      if forWriting && (!isAlone || map.fixedContains(cluster)) {
        throw overlap("refcount table entry", index, entry.raw)
      }
    }
  }

  private static func overlap(_ name: FieldName, _ index: Int, _ value: UInt64) -> ImageError {
    .damaged(
      .badEntry(name: name, index: UInt64(index), value: value, problem: .overlapsMetadata))
  }
}

/// The areas that the header points at, as host clusters.
private struct FixedAreas {
  private static let header = HostCluster(0)..<HostCluster(1)

  private let named: [(name: FieldName, offset: UInt64, clusters: Range<HostCluster>)]
  /// All but the refcount table and the L1 table, which move when they grow, and the snapshot table.
  private(set) var unmovable = [FixedAreas.header]
  let refcountTable: Range<HostCluster>
  private(set) var l1Table = HostCluster(0)..<HostCluster(0)
  /// Moves whenever a snapshot is taken or deleted.
  private(set) var snapshotTable = HostCluster(0)..<HostCluster(0)

  init(_ head: HeaderCluster, _ table: DiskTable, _ snapshots: SnapshotTable) {
    let header = head.header
    let geometry = header.geometry
    func clusters(_ offset: UInt64, _ bytes: UInt64) -> Range<HostCluster> {
      let first = geometry.hostCluster(of: HostOffset(offset))
      return first..<(first + geometry.clusters(covering: bytes))
    }
    var named: [(FieldName, UInt64, Range<HostCluster>)] = [("header", 0, Self.header)]
    if header.l1Size > 0 {
      l1Table = clusters(header.l1TableOffset, UInt64(header.l1Size) * 8)
      named.append(("l1_table_offset", header.l1TableOffset, l1Table))
    }
    if header.snapshotCount > 0 {
      let area = clusters(header.snapshotsOffset, max(snapshots.length, 1))
      named.append(("snapshots_offset", header.snapshotsOffset, area))
      snapshotTable = area
    }
    if let pointer = head.encryptionHeader, header.cryptMethod == 2 {
      let area = clusters(pointer.offset.bytes, pointer.length)
      named.append(("encryption header", pointer.offset.bytes, area))
      unmovable.append(area)
    }
    refcountTable = clusters(
      header.refcountTableOffset,
      UInt64(header.refcountTableClusters) << UInt64(header.clusterBits))
    named.append(("refcount_table_offset", header.refcountTableOffset, refcountTable))
    self.named = named
  }

  func requireDisjoint() throws(ImageError) {
    for (index, area) in named.enumerated() {
      if named[..<index].contains(where: { $0.clusters.overlaps(area.clusters) }) {
        throw .damaged(
          .badOffset(
            name: area.name, offset: HostOffset(area.offset), problem: .overlapsMetadata))
      }
    }
  }
}
