import BlockCore
import QCOW2Format

/// Says without zero flags what an image of version 3 says with them, in the tables of the disk and of all
/// snapshots; the image stays one of version 3.
///
/// Without a backing file, what is not allocated reads as zeros, so the entries are emptied where they are.
/// With one, they are led to clusters of zeros, each shared by as many entries as a refcount can count: a
/// write to one of these takes another cluster, as after a snapshot. `|` being an fsync:
///
///     zeros, their refcounts in new structures | header points at these | entries
///
/// What an entry with a zero flag had allocated is leaked then, until refcounts are counted anew. A crash
/// leaves entries of the old kind and of the new kind, which read the same.
struct ZeroExpansion {
  private let file: any WritableImageBytes
  private let scan: RefcountScan
  private let geometry: ClusterGeometry
  private let head: HeaderCluster

  /// What is to be done with the zeros of all tables.
  private struct Need {
    /// Entries with a zero flag.
    var entries: UInt64 = 0
    /// The references that the shared clusters get, one after the other.
    var references: [UInt64] = []
    var hasCompressed = false
  }

  /// - Parameter file: An image of version 3.
  /// - Throws: ``ToolError/notOnlyRefcounts(_:)`` for an image with damage.
  init(_ file: any WritableImageBytes) throws(ToolError) {
    self.file = file
    scan = try RefcountScan(file, plansRepair: false)
    geometry = scan.geometry
    head = scan.check.head
    if let other = scan.otherDamage ?? scan.doubleUse { throw .notOnlyRefcounts(other) }
  }

  /// - Returns: Whether anything has changed.
  func run() throws(ToolError) -> Bool {
    var need = Need()
    try forEachTable { buffer, times, _ throws(ToolError) in
      try count(buffer, times, &need)
    }
    if need.hasCompressed, head.header.compressionType != 0 {
      throw .amend(.downgrade(.compressedByZstd))
    }
    if need.entries == 0 { return false }
    var places: Places?
    if head.backingFile != nil {
      if head.header.cryptMethod != 0 { throw .amend(.downgrade(.encryptedZeros)) }
      places = try provideZeros(need)
    }
    try forEachTable { buffer, times, offset throws(ToolError) in
      guard replace(buffer, times, &places) else { return }
      try unsafe file.write(buffer.bytes, at: offset)
    }
    try file.sync()
    return true
  }

  /// Calls `body` with the bytes of each L2 table, how often it is referred to, and where it lies.
  private func forEachTable(
    _ body: (IOBuffer, UInt64, HostOffset) throws(ToolError) -> Void
  ) throws(ToolError) {
    let buffer = IOBuffer(count: Int(geometry.clusterSize))
    for (table, uses) in scan.check.l2Tables.sorted(by: { $0.key < $1.key }) {
      try file.read(into: buffer, count: buffer.count, at: table)
      try body(buffer, uses.active &+ uses.inactive, table)
    }
  }

  private func count(
    _ buffer: IOBuffer, _ times: UInt64, _ need: inout Need
  ) throws(ToolError) {
    for index in 0..<Int(geometry.l2Entries) {
      switch L2Entry(raw: buffer.be64(index * 8)).kind(hasZeroFlag: true) {
      case .compressed: need.hasCompressed = true
      case .zero:
        need.entries += 1
        guard times <= geometry.maxRefcount else {
          throw .amend(
            .tooManyReferences(
              bits: 1 << geometry.refcountOrder, cluster: HostOffset(0), refcount: times))
        }
        if let last = need.references.last, last <= geometry.maxRefcount - times {
          need.references[need.references.count - 1] += times
        } else {
          need.references.append(times)
        }
      case .unallocated, .data: break
      }
    }
  }

  /// Writes the clusters of zeros and counts their references.
  private func provideZeros(_ need: Need) throws(ToolError) -> Places {
    let place = scan.firstFree(UInt64(need.references.count))
    var counts: [HostCluster: UInt64] = [:]
    for (cluster, references) in zip(place, need.references) { counts[cluster] = references }
    let new = try NewRefcounts(
      scan, counting: counts, placingFrom: place.upperBound, isBlockDevice: file.isBlockDevice,
      length: file.length)
    let zeros = IOBuffer(count: Int(geometry.clusterSize))
    for cluster in place {
      try unsafe file.write(zeros.bytes, at: geometry.start(of: cluster))
    }
    withExtendedLifetime(zeros) {}
    try new.write(to: file, scan)
    return Places(clusters: place, left: need.references)
  }

  /// Replaces the entries of a table in memory, in the order in which they were counted.
  ///
  /// - Returns: Whether there was any.
  private func replace(
    _ buffer: IOBuffer, _ times: UInt64, _ places: inout Places?
  ) -> Bool {
    var isChanged = false
    for index in 0..<Int(geometry.l2Entries)
    where L2Entry(raw: buffer.be64(index * 8)).kind(hasZeroFlag: true) == .zero {
      isChanged = true
      buffer.storeBE64(places?.take(times, geometry).raw ?? 0, index * 8)
    }
    return isChanged
  }
}

/// The shared clusters, and how many references each of them still takes.
private struct Places {
  var clusters: Range<HostCluster>
  var left: [UInt64]

  /// An entry for the next cluster that takes so many more references.
  mutating func take(_ times: UInt64, _ geometry: ClusterGeometry) -> L2Entry {
    while left[0] < times, left.count > 1 {
      left.removeFirst()
      clusters = (clusters.lowerBound + 1)..<clusters.upperBound
    }
    left[0] -= min(times, left[0])
    let host = geometry.start(of: clusters.lowerBound)
    return L2Entry(data: host, copied: false)
  }
}
