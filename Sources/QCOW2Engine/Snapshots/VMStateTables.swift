package import BlockCore
import QCOW2Format

/// Reads VM state that is to be kept: fills a buffer, plain memory, from byte `offset` of the state on.
///
/// Returns whether the work is still wanted, and could be done.
package typealias VMStateSource =
  @Sendable (
    _ buffer: DataBuffer, _ offset: UInt64
  ) async -> Bool

/// L2 tables and clusters with VM state, in new places of the host file that nothing leads to yet.
///
/// The tables belong to the L1 table of one snapshot, so each entry is made once and never changed.
/// What is written is durable after the next flush round; a crash before that leaks it.
struct VMStateTables {
  /// The most bytes that one step reads and writes, if a cluster is not larger.
  private static let stepBytes: UInt64 = 1 << 20

  private let image: Image
  /// The guest offset of the first byte.
  private let start: UInt64
  /// One for each table, in order.
  private(set) var entries: [L1Entry] = []
  /// The bytes of the table that is being filled.
  private var table: IOBuffer
  private var used = 0
  private var runs: [ClusterRun] = []

  /// None yet.
  ///
  /// - Parameters:
  ///   - image: Where they are made; opened for writing, without an external data file.
  ///   - index: The index of the L1 entry that is to lead to the first of them.
  /// - Throws: ``ImageError/noMemory(bytes:)``.
  init(_ image: Image, from index: UInt64) throws(ImageError) {
    self.image = image
    start = index * image.geometry.bytesPerL2Table
    table = try Self.emptyTable(image)
  }

  private static func emptyTable(_ image: Image) throws(ImageError) -> IOBuffer {
    try IOBuffer.ofTable(Int(image.geometry.clusterSize))
  }

  /// Writes all of the VM state.
  ///
  /// - Returns: False if `source` said so; then, as after an error, ``giveUp()`` is due.
  mutating func write(_ size: UInt64, from source: VMStateSource) async throws(ImageError) -> Bool {
    let cluster = image.geometry.clusterSize
    let buffer = try IOBuffer.ofTable(Int(max(cluster, Self.stepBytes)))
    defer { withExtendedLifetime(buffer) {} }
    var done: UInt64 = 0
    while done < size {
      let count = min(UInt64(buffer.count), size - done)
      guard await source(buffer.data.slice(0, Int(count)), done) else { return false }
      let whole = (count + cluster - 1) / cluster * cluster
      buffer.withMutableBytes { bytes in
        for index in Int(count)..<Int(whole) { bytes[index] = 0 }
      }
      try await append(buffer.data.slice(0, Int(whole)), at: done)
      done += whole
    }
    try await endTable()
    return true
  }

  /// Writes whole clusters.
  private mutating func append(_ data: DataBuffer, at offset: UInt64) async throws(ImageError) {
    let cluster = Int(image.geometry.clusterSize)
    // Version 2 cannot say zeros: an entry without a cluster shows what a backing file has there.
    let hasZeros = image.header.version >= 3
    var next = 0
    while next < data.count {
      if hasZeros, data.slice(next, cluster).isAllZeros {
        try await link(nil)
        next += cluster
        continue
      }
      var end = next + cluster
      while end < data.count, !(hasZeros && data.slice(end, cluster).isAllZeros) {
        end += cluster
      }
      let run = try await take(UInt64((end - next) / cluster))
      let bytes = Int(run.count) * cluster
      try await image.reader.guestData.write(
        from: data.slice(next, bytes), at: image.geometry.start(of: run.start),
        guest: GuestOffset(start + offset + UInt64(next)))
      for host in run.start..<run.end { try await link(host) }
      next += bytes
    }
  }

  /// Makes the next entry, for a cluster of data or, with nil, of zeros.
  private mutating func link(_ host: HostCluster?) async throws(ImageError) {
    let (geometry, rules) = (image.geometry, image.mapping.rules)
    let entry: ClusterEntry
    if let host {
      // COPIED is not set in the tables of a snapshot.
      let own = rules.entry(host: geometry.start(of: host), allocated: .max, zero: 0)
      entry = ClusterEntry(own.descriptor.copied(false), own.bitmap)
    } else {
      entry = rules.zeros
    }
    let position = used << geometry.l2EntryBits
    unsafe table.base.storeBE64(entry.descriptor.raw, position)
    if rules.isExtended { unsafe table.base.storeBE64(entry.bitmap.raw, position + 8) }
    used += 1
    if used == Int(geometry.l2Entries) { try await endTable() }
  }

  /// Writes the table that is being filled, and begins another.
  private mutating func endTable() async throws(ImageError) {
    if used == 0 { return }
    let run = try await take(1)
    let place = image.geometry.start(of: run.start)
    // Slices left over from an earlier life of this cluster must not be taken for the new table's.
    guard image.mapping.cache.drop(from: place, length: image.geometry.clusterSize) else {
      throw .overlapsMetadata(cluster: run.start)
    }
    try await image.reader.storage.write(from: table, at: place)
    entries.append(L1Entry(l2Table: place, copied: false))
    table = try Self.emptyTable(image)
    used = 0
  }

  /// Takes 1 to `wanted` new clusters.
  private mutating func take(_ wanted: UInt64) async throws(ImageError) -> ClusterRun {
    let run = try await image.supply.allocator.reserve(upTo: wanted)
    runs.append(run)
    return run
  }

  /// Gives all clusters back: nothing has ever led to them.
  mutating func giveUp() async {
    for run in runs { try? await image.supply.allocator.unreserve(run) }
    runs = []
  }
}
