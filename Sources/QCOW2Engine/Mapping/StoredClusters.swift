import BlockCore
import QCOW2Format

/// Compares the storage that the host has given to an image with the clusters that are in use.
///
/// Reads refcounts from the host file itself, since an image that is only read has none in memory; no
/// more of them than the storage needs. What it answers decides nothing but how closely
/// ``BlockStatus`` looks.
struct StoredClusters {
  private static let piece = 64 << 10

  private let storage: ImageStorage
  private let header: Header
  private let geometry: ClusterGeometry

  init(_ storage: ImageStorage, _ header: Header) {
    self.storage = storage
    self.header = header
    geometry = header.geometry
  }

  /// Whether metadata was preallocated.
  ///
  /// QEMU's rule: a tenth more clusters, and two at least, are in use than have storage.
  func areFewerThanUsed() async throws(ImageError) -> Bool {
    guard let stored = await storage.file.storedBytes() else { return false }
    let length = try await storage.length()
    let clusters = stored >> UInt64(geometry.clusterBits)
    let limit = max(clusters * 10 / 9, clusters + 2)
    let end = geometry.clusters(covering: length)
    return try await countUsed(below: end, upTo: limit, fileLength: length) >= limit
  }

  private func countUsed(
    below end: UInt64, upTo limit: UInt64, fileLength: UInt64
  ) async throws(ImageError) -> UInt64 {
    let tableBytes = UInt64(header.refcountTableClusters) << UInt64(geometry.clusterBits)
    let buffer = IOBuffer(count: 4096)
    let perBlock = (geometry.clusterSize << 3) >> UInt64(geometry.refcountOrder)
    var count: UInt64 = 0
    var index: UInt64 = 0
    while index * 8 < tableBytes, index * perBlock < end, count < limit {
      if index % 512 == 0 {
        try await storage.read(
          into: buffer, at: HostOffset(header.refcountTableOffset) + index * 8)
      }
      let entry = RefcountTableEntry(
        raw: buffer.withBytes { $0.be64(Int(index % 512) * 8) })
      if let block = entry.block, entry.faults(geometry, fileLength: fileLength).isEmpty {
        let clusters = min(end - index * perBlock, perBlock)
        count += try await used(block, clusters, upTo: limit - count)
      }
      index += 1
    }
    return count
  }

  /// How many of the first clusters of a refcount block are in use.
  private func used(
    _ block: HostOffset, _ clusters: UInt64, upTo limit: UInt64
  ) async throws(ImageError) -> UInt64 {
    let order = geometry.refcountOrder
    let size = min(Self.piece, Int(geometry.clusterSize))
    let perPiece = (UInt64(size) << 3) >> UInt64(order)
    let buffer = IOBuffer(count: size)
    defer { withExtendedLifetime(buffer) {} }
    var count: UInt64 = 0
    var first: UInt64 = 0
    while first < clusters, count < limit {
      try await storage.read(into: buffer, at: block + first / perPiece * UInt64(size))
      for index in 0..<Int(min(perPiece, clusters - first)) {
        if unsafe RefcountWidth.get(buffer.base, order: order, index: index) > 0 { count += 1 }
      }
      first += perPiece
    }
    return count
  }
}
