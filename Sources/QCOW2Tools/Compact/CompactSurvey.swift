import BlockCore
import QCOW2Format

/// What lies where in the file of an image whose refcounts are exact, and what of it can be moved how.
///
/// Refcount structures count as free: a compaction writes them anew. Takes two bytes for each host cluster
/// beside those of the scan, where there is compressed data.
final class CompactSurvey {
  let scan: RefcountScan
  let geometry: ClusterGeometry
  /// The structures that have several clusters, which must stay side by side; ascending.
  let structures: [Range<HostCluster>]
  /// Clusters that stay where they are; ascending.
  private(set) var fixed: [Range<HostCluster>]
  /// The clusters in use, without refcount structures.
  private(set) var used: UInt64 = 0
  /// The end of the clusters in use, refcount structures included.
  private(set) var end = HostCluster(1)
  /// How many references to compressed data each cluster has.
  private var compressed = ReferenceMap(clusterCount: 0)
  private let file: any ImageBytes

  /// Reads all tables.
  ///
  /// - Throws: ``ToolError/notOnlyRefcounts(_:)`` for an image with damage.
  init(_ file: any ImageBytes) throws(ToolError) {
    self.file = file
    scan = try RefcountScan(file, plansRepair: false)
    if let damage = scan.otherDamage ?? scan.doubleUse { throw .notOnlyRefcounts(damage) }
    geometry = scan.geometry
    let places = try StructurePlaces(file, scan)
    structures = places.long
    fixed = places.fixed
    compressed = ReferenceMap(clusterCount: scan.fileEnd.number)
    try countCompressed()
    let mixed = countUsed()
    // Of a cluster with both kinds of data, neither kind alone has the refcount.
    fixed = (mixed.map { $0..<($0 + 1) } + fixed).sorted { $0.lowerBound < $1.lowerBound }
  }

  private func countCompressed() throws(ToolError) {
    try Self.forEachTable(file, scan) { buffer, times, _ throws(ToolError) in
      Self.forEachCompressed(buffer, scan) { descriptor in
        for cluster in descriptor.hostClusters(scan.geometry) {
          _ = compressed.add(.guestData, to: cluster, times: times)
        }
      }
    }
  }

  /// - Returns: The clusters with compressed data and with other data, ascending.
  private func countUsed() -> [HostCluster] {
    var mixed: [HostCluster] = []
    var position = HostCluster(0)
    while let cluster = scan.check.references.nextReferenced(from: position) {
      position = cluster + 1
      end = position
      if scan.check.references.use(of: cluster).isRefcounts { continue }
      used += 1
      let count = compressed.count(of: cluster)
      if count > 0, count != scan.check.references.count(of: cluster) { mixed.append(cluster) }
    }
    return mixed
  }

  /// Whether nothing but refcount structures is in a cluster.
  func isFree(_ cluster: HostCluster) -> Bool {
    cluster.number > 0
      && (scan.check.references.count(of: cluster) == 0
        || scan.check.references.use(of: cluster).isRefcounts)
  }

  func hasCompressed(_ cluster: HostCluster) -> Bool { compressed.count(of: cluster) > 0 }

  func compressedReferences(_ cluster: HostCluster) -> UInt64 { compressed.count(of: cluster) }

  /// Calls `body` with each cluster of a range that is in use.
  func forEachUsed(in range: Range<HostCluster>, _ body: (HostCluster) -> Void) {
    var position = range.lowerBound
    while let cluster = scan.check.references.nextReferenced(from: position),
      cluster < range.upperBound
    {
      position = cluster + 1
      if !scan.check.references.use(of: cluster).isRefcounts { body(cluster) }
    }
  }

  /// The free clusters below `end`, but for cluster 0; at most `most` runs of them.
  func freeRuns(below end: HostCluster, most: Int) -> [Range<HostCluster>] {
    var runs: [Range<HostCluster>] = []
    var start: HostCluster?
    var cluster = HostCluster(1)
    while cluster < end, runs.count < most {
      let isFree = isFree(cluster)
      if isFree, start == nil { start = cluster }
      if !isFree, let first = start {
        runs.append(first..<cluster)
        start = nil
      }
      cluster += 1
    }
    if let start, start < cluster { runs.append(start..<cluster) }
    return runs
  }

  /// The compressed data that lies in clusters for which `isSource` holds, and in none for which `isKept`
  /// does, in the order of the file.
  func compressedData(
    where isSource: (HostCluster) -> Bool, unless isKept: (HostCluster) -> Bool
  ) throws(ToolError) -> [CompressedMove] {
    var found: [CompressedMove] = []
    try Self.forEachTable(file, scan) { buffer, times, _ throws(ToolError) in
      Self.forEachCompressed(buffer, scan) { descriptor in
        let clusters = descriptor.hostClusters(geometry)
        guard clusters.contains(where: isSource), !clusters.contains(where: isKept) else { return }
        found.append(
          CompressedMove(
            offset: descriptor.offset, length: descriptor.length, references: times))
      }
    }
    found.sort(by: CompressedMove.precedes)
    var merged: [CompressedMove] = []
    for piece in found {
      if let last = merged.last, last.offset == piece.offset, last.length == piece.length {
        merged[merged.count - 1].references += piece.references
      } else {
        merged.append(piece)
      }
    }
    return merged
  }

  /// Calls `body` with the bytes of each L2 table, how often it is referred to, and where it lies.
  static func forEachTable(
    _ file: any ImageBytes, _ scan: RefcountScan,
    where isWanted: (HostOffset) -> Bool = { _ in true },
    _ body: (IOBuffer, UInt64, HostOffset) throws(ToolError) -> Void
  ) throws(ToolError) {
    let buffer = IOBuffer(count: Int(scan.geometry.clusterSize))
    for (table, uses) in scan.check.l2Tables.sorted(by: { $0.key < $1.key }) where isWanted(table) {
      try file.read(into: buffer, count: buffer.count, at: table)
      try body(buffer, uses.active &+ uses.inactive, table)
    }
  }

  private static func forEachCompressed(
    _ buffer: IOBuffer, _ scan: RefcountScan, _ body: (CompressedDescriptor) -> Void
  ) {
    if scan.check.rules.hasDataFile { return }
    let step = 1 << scan.geometry.l2EntryBits
    for position in stride(from: 0, to: buffer.count, by: step) {
      let entry = L2Entry(raw: buffer.be64(position))
      guard entry.raw & EntryBits.compressed != 0 else { continue }
      body(CompressedDescriptor(entry, scan.geometry))
    }
  }
}

extension HostUse {
  /// Whether it is the refcount table or one of its blocks.
  var isRefcounts: Bool { self == .refcountTable || self == .refcountBlock }
}

/// Where the structures lie that have more than one cluster, or cannot move.
private struct StructurePlaces {
  var long: [Range<HostCluster>] = []
  var fixed: [Range<HostCluster>] = []

  init(_ file: any ImageBytes, _ scan: RefcountScan) throws(ToolError) {
    let head = scan.check.head
    for table in scan.check.l1Tables {
      add(table.offset, UInt64(table.entries) * 8, scan.geometry)
    }
    add(HostOffset(head.header.snapshotsOffset), scan.check.snapshotTableLength, scan.geometry)
    if let pointer = head.encryptionHeader, head.header.cryptMethod == 2 {
      add(
        pointer.offset, pointer.length, scan.geometry,
        isFixed: !CompactHeader.canPoint(head, .encryptionHeader))
    }
    if case .success(let location) = head.trustedBitmaps {
      add(
        location.directory, location.directoryLength, scan.geometry,
        isFixed: !CompactHeader.canPoint(head, .bitmaps))
      for bitmap in try BitmapList.read(file, head, location) {
        add(bitmap.entry.table, UInt64(bitmap.entry.tableSize) * 8, scan.geometry)
      }
    }
    long.sort { $0.lowerBound < $1.lowerBound }
  }

  private mutating func add(
    _ offset: HostOffset, _ length: UInt64, _ geometry: ClusterGeometry, isFixed: Bool = false
  ) {
    if length == 0 { return }
    let first = geometry.hostCluster(of: offset)
    let range = first..<(first + geometry.clusters(covering: length))
    if isFixed { fixed.append(range) } else if range.count > 1 { long.append(range) }
  }
}
