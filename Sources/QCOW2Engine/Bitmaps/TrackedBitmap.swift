import BlockCore
import QCOW2Format

/// A bitmap that follows every change, and its table on the host file.
///
/// The bits are for everyone; all else belongs to whoever holds ``ChangeTracker``'s mutex.
/// Source: qcow2 specification, "Bitmap table" and "Bitmap data".
final class TrackedBitmap: @unchecked Sendable {  // why: atomics, and state guarded by that mutex
  /// A stretch of bits that lies in one cluster of the bitmap.
  struct Part {
    let entry: Int
    let bits: Range<UInt64>
  }

  let name: String
  let bits: TrackedBits
  let geometry: ClusterGeometry
  /// Where the table starts.
  let table: HostOffset
  let granularityBits: UInt8
  /// The table as it should be on the host file.
  private var entries: [UInt64]
  /// Blocks of the table that the host file may not have yet.
  private var unsettled: Set<Int> = []
  /// Blocks of the bitmap that may have bits on the host file which nothing asked for.
  private var excess: Set<Int> = []
  /// Entries that say "all ones" only because there was no cluster to be had.
  private(set) var flattened: Set<Int> = []

  /// - Parameters:
  ///   - name: the bitmap's name, for reports.
  ///   - bits: as loaded.
  ///   - entry: what the directory says, or is to say.
  ///   - entries: the table, checked.
  ///   - geometry: the image's.
  ///   - isNew: the host file does not have the table yet.
  init(
    name: String, bits: TrackedBits, entry: BitmapEntry, entries: [UInt64],
    geometry: ClusterGeometry, isNew: Bool = false
  ) {
    self.name = name
    self.bits = bits
    table = entry.table
    granularityBits = entry.granularityBits
    self.entries = entries
    self.geometry = geometry
    if isNew { unsettled = Set(0..<((entries.count * 8 + blockSize - 1) / blockSize)) }
  }

  /// Takes the bits from the host file, while nobody else knows the bitmap.
  func loadBits(_ storage: ImageStorage) async throws(ImageError) {
    let buffer = IOBuffer(count: Int(geometry.clusterSize))
    let words = buffer.count / 8
    for (index, raw) in entries.enumerated() {
      let entry = BitmapTableEntry(raw: raw)
      if let cluster = entry.cluster {
        try await storage.read(into: buffer, at: cluster)
        unsafe bits.load(buffer.base, words: words, from: index * words)
      } else if entry.isAllOnes {
        bits.load(allBits(index))
      }
    }
    withExtendedLifetime(buffer) {}
  }

  // MARK: Geometry

  /// The unit of writing, of the table and of the bits; in bytes.
  private var blockSize: Int { Int(min(geometry.clusterSize, 4096)) }
  private var blocksPerCluster: Int { Int(geometry.clusterSize) / blockSize }
  private var bitsPerCluster: UInt64 { geometry.clusterSize * 8 }

  /// All bits in the cluster of an entry.
  func allBits(_ entry: Int) -> Range<UInt64> {
    let first = UInt64(entry) * bitsPerCluster
    return first..<min(first + bitsPerCluster, bits.count)
  }

  /// Splits bits by the clusters that they lie in.
  func parts(_ range: Range<UInt64>) -> [Part] {
    var parts: [Part] = []
    var at = range.lowerBound
    while at < range.upperBound {
      let entry = Int(at / bitsPerCluster)
      let end = min(range.upperBound, UInt64(entry + 1) * bitsPerCluster)
      parts.append(Part(entry: entry, bits: at..<end))
      at = end
    }
    return parts
  }

  func entry(_ index: Int) -> BitmapTableEntry { BitmapTableEntry(raw: entries[index]) }
  var entryCount: Int { entries.count }
  /// The host clusters that hold bits.
  var clusters: [HostCluster] {
    entries.compactMap { BitmapTableEntry(raw: $0).cluster.map(geometry.hostCluster) }
  }

  // MARK: The table

  /// Makes an entry say that all bits are set: always true enough, and needs no cluster.
  ///
  /// `isExact` if all of them have been asked for.
  func flatten(_ index: Int, isExact: Bool) {
    if !entry(index).isAllOnes { change(index, to: 1) }
    if isExact { flattened.remove(index) } else { flattened.insert(index) }
  }

  /// Points an entry at a cluster whose contents and refcount are durable.
  func link(_ index: Int, to cluster: HostCluster) {
    change(index, to: geometry.start(of: cluster).bytes)
    flattened.remove(index)
  }

  private func change(_ index: Int, to raw: UInt64) {
    entries[index] = raw
    unsettled.insert(index * 8 / blockSize)
  }

  /// Writes what has changed in the table; each block is written whole, and each sector of it may
  /// be the old or the new one after a crash.
  func writeTable(_ storage: ImageStorage) async throws(ImageError) {
    for block in unsettled.sorted() {
      let buffer = IOBuffer(count: blockSize)
      let first = block * blockSize / 8
      for index in first..<min(first + blockSize / 8, entries.count) {
        unsafe buffer.base.storeBE64(entries[index], (index - first) * 8)
      }
      try await storage.write(from: buffer, at: table + UInt64(block * blockSize))
      unsettled.remove(block)
    }
  }

  // MARK: The bits

  /// Fills a new cluster for an entry that has none; `added` bits are set, too.
  func writeCluster(
    _ cluster: HostCluster, for entry: Int, adding added: [Range<UInt64>], _ storage: ImageStorage
  ) async throws(ImageError) {
    let first = entry * blocksPerCluster
    let blocks = first..<(first + blocksPerCluster)
    try await write(blocks, adding: added, to: cluster, storage)
  }

  /// Writes all that has been asked for into the cluster that an entry has.
  func rewriteCluster(of entry: Int, _ storage: ImageStorage) async throws(ImageError) {
    guard let cluster = self.entry(entry).cluster else { return }
    try await writeCluster(
      geometry.hostCluster(of: cluster), for: entry, adding: [], storage)
  }

  /// Whether two parts lie in the same cluster and in the same or in neighbouring blocks.
  func areNeighbours(_ part: Part, _ next: Part) -> Bool {
    part.entry == next.entry && blocks(next).lowerBound <= blocks(part).upperBound
  }

  private func blocks(_ part: Part) -> Range<Int> {
    let perBlock = UInt64(blockSize * 8)
    return Int(part.bits.lowerBound / perBlock)..<Int((part.bits.upperBound - 1) / perBlock + 1)
  }

  /// Writes the blocks of `part` to its cluster: `added` bits, and all that have been asked for.
  ///
  /// `added` must hold whatever else is being set in these blocks before the next sync.
  func writeBits(
    _ part: Part, adding added: [Range<UInt64>], in cluster: HostOffset, _ storage: ImageStorage
  ) async throws(ImageError) {
    try await write(
      blocks(part), adding: added, to: geometry.hostCluster(of: cluster), storage)
  }

  private func write(
    _ blocks: Range<Int>, adding added: [Range<UInt64>], to cluster: HostCluster,
    _ storage: ImageStorage
  ) async throws(ImageError) {
    let perBlock = UInt64(blockSize * 8)
    let all = UInt64(blocks.lowerBound) * perBlock..<UInt64(blocks.upperBound) * perBlock
    let added = added.map { $0.clamped(to: all) }.filter { !$0.isEmpty }
    for range in added {
      excess.formUnion(Int(range.lowerBound / perBlock)...Int((range.upperBound - 1) / perBlock))
    }
    let buffer = IOBuffer(count: blocks.count * blockSize)
    let words = blockSize / 8
    unsafe bits.copy(
      blocks.lowerBound * words..<blocks.upperBound * words, to: buffer.base, adding: added)
    let offset = UInt64(blocks.lowerBound % blocksPerCluster * blockSize)
    try await storage.write(
      from: buffer, at: geometry.start(of: cluster) + offset)
  }

  // MARK: Back to the exact bits

  /// Nothing on the host file is known to differ from the exact bits.
  var isExact: Bool { excess.isEmpty && flattened.isEmpty && unsettled.isEmpty }

  /// Writes the exact bits of up to `limit` blocks that had more; returns how many.
  func writeExact(atMost limit: Int, _ storage: ImageStorage) async throws(ImageError) -> Int {
    let blocks = Array(excess.prefix(limit))
    let perBlock = blockSize / 8
    for block in blocks {
      // A cluster that was given up before its entry pointed at it has no bits to clear.
      guard let cluster = entry(block / blocksPerCluster).cluster else {
        excess.remove(block)
        continue
      }
      bits.dropExcess(block * perBlock..<(block + 1) * perBlock)
      try await write(
        block..<(block + 1), adding: [], to: geometry.hostCluster(of: cluster), storage)
      excess.remove(block)
    }
    return blocks.count
  }

  /// Stops relying on the bits of an entry that nothing has asked for.
  func dropExcess(ofEntry entry: Int) {
    let words = Int(geometry.clusterSize / 8)
    bits.dropExcess(entry * words..<(entry + 1) * words)
  }
}
