import BlockCore
import QCOW2Format

/// Reads, checks and loads persistent bitmaps when an image is opened for writing.
///
/// A bitmap with the flag `auto` must follow every change. One that cannot, for whatever reason, is
/// marked `in_use` on the host file, which tells everyone not to trust it; if not even that is
/// possible, all bitmaps are declared inconsistent by the autoclear bit. An image is never refused
/// for its bitmaps. Bitmaps without `auto`, and those in use already, are left as they are.
///
/// The work is bounded: tables, directory and bits have limits in all, and no cluster is read
/// twice. Source: qcow2 specification, "Bitmaps extension", "Bitmap directory", "Bitmap table".
struct BitmapLoader {
  /// The most memory for the bits of all bitmaps, in bytes.
  static let mostMemory: UInt64 = 512 << 20
  /// The most table entries of all bitmaps.
  static let mostTableEntries: UInt64 = 8 << 20

  private let header: Header
  private let geometry: ClusterGeometry
  private let storage: ImageStorage
  private let allocator: ClusterAllocator
  private let metadata: MetadataMap
  private let fileLength: UInt64
  /// What the header says of the directory.
  private let location: Result<BitmapsExtension, BitmapProblem>
  /// What the bits of all bitmaps so far take, in bytes.
  private var memory: UInt64 = 0
  let words: BitmapWords
  private var tableEntries: UInt64 = 0

  /// What a writer is to do about the bitmaps.
  struct Outcome {
    var tracked: [TrackedBitmap] = []
    /// Where the tables of bitmaps start whose clusters are known to be theirs alone.
    var sound: Set<UInt64> = []
    /// The autoclear bit may stay.
    var isConsistent = false
    /// Why not, if the image says that it has bitmaps.
    var problem: BitmapProblem?
    var report = BitmapReport()
  }

  init(_ parts: ImageParts, _ head: HeaderCluster, fileLength: UInt64) {
    let found = head.hasOne(.bitmaps) ? head.bitmaps : nil
    location = found?.mapError { .format($0) } ?? .failure(.extensions)
    header = parts.header
    geometry = header.geometry
    storage = parts.storage
    allocator = parts.allocator
    metadata = parts.metadata
    words = BitmapWords(parts.memory)
    self.fileLength = fileLength
  }

  /// Loads what is to be tracked, and marks what cannot be.
  ///
  /// - Throws: ``ImageError/io(_:at:_:)`` only.
  mutating func load() async throws(ImageError) -> Outcome {
    guard header.version >= 3, header.autoclear.contains(.bitmaps) else { return Outcome() }
    var outcome = Outcome()
    switch try await readDirectory() {
    case .failure(let problem):
      outcome.report.inconsistent = problem.message
      outcome.problem = problem
      return outcome
    case .success(let directory):
      outcome.isConsistent = true
      outcome.report.count = directory.items.count
      var unusable: [BitmapDirectory.Item] = []
      for item in directory.items {
        switch try await load(item) {
        case .success(let bitmap):
          outcome.sound.insert(item.entry.table.bytes)
          if let bitmap { outcome.tracked.append(bitmap) }
        case .failure(let problem):
          // Nothing of the others is ours to judge.
          guard item.mustBeTracked else { continue }
          unusable.append(item)
          outcome.report.given.append((item.name, problem.message))
        }
      }
      try await markInUse(unusable, directory)
      outcome.report.tracked = outcome.tracked.map(\.name)
      return outcome
    }
  }

  // MARK: Directory

  private func readDirectory() async throws(ImageError) -> Result<BitmapDirectory, BitmapProblem> {
    let location: BitmapsExtension
    do throws(BitmapProblem) { location = try self.location.get() } catch {
      return .failure(error)
    }
    do throws(FormatError) { try location.requireInside(fileLength: fileLength) } catch {
      return .failure(.format(error))
    }
    if let problem = try await claim(location.directory, location.directoryLength) {
      return .failure(problem)
    }
    let bytes = IOBuffer(count: Int(location.directoryLength))
    try await storage.read(into: bytes, at: location.directory)
    do throws(FormatError) {
      return .success(
        try bytes.withBytes { bytes throws(FormatError) in
          try BitmapDirectory(parsing: bytes, location)
        })
    } catch { return .failure(.format(error)) }
  }

  /// Sets the flag of entries, each inside one sector, and makes that durable.
  private func markInUse(
    _ items: [BitmapDirectory.Item], _ directory: BitmapDirectory
  ) async throws(ImageError) {
    if items.isEmpty { return }
    for item in items {
      let at = directory.flags(of: item)
      let sector = HostOffset(at.bytes & ~511)
      let buffer = IOBuffer(count: 512)
      try await storage.read(into: buffer, at: sector)
      buffer.withMutableBytes {
        item.entry.flags.union(.inUse).write(into: &$0, at: Int(at.bytes & 511))
      }
      try await storage.write(from: buffer, at: sector)
    }
    try await storage.sync()
  }

  // MARK: One bitmap

  /// The bitmap if it must be tracked; its clusters are protected in any case.
  private mutating func load(
    _ item: BitmapDirectory.Item
  ) async throws(ImageError) -> Result<TrackedBitmap?, BitmapProblem> {
    let entry = item.entry
    if let problem = admit(item) { return .failure(problem) }
    var claimed: [ClusterRange] = []
    let tableLength = UInt64(entry.tableSize) * 8
    let entries: [UInt64]
    switch try await readTable(entry, tableLength, &claimed) {
    case .failure(let problem):
      release(claimed)
      return .failure(problem)
    case .success(let table): entries = table
    }
    guard item.mustBeTracked else { return .success(nil) }
    let count = entry.bitCount(diskSize: header.size)
    let needed = TrackedBits.memory(count: count)
    guard needed <= Self.mostMemory - memory else {
      return .failure(.tooLarge(bytes: memory + needed))
    }
    let bits: TrackedBits
    do throws(ImageError) {
      bits = try words.bits(
        count: count, granularityBits: entry.granularityBits, table: entry.table)
    } catch { return .failure(.tooLarge(bytes: memory + needed)) }
    memory += needed
    let bitmap = TrackedBitmap(
      name: item.name, bits: bits, entry: entry, entries: entries, geometry: geometry)
    try await bitmap.loadBits(storage)
    return .success(bitmap)
  }

  private mutating func admit(_ item: BitmapDirectory.Item) -> BitmapProblem? {
    do { try item.entry.validate(geometry, diskSize: header.size) } catch {
      return .format(error)
    }
    if item.entry.extraLength > 0 && !item.entry.flags.contains(.extraDataCompatible) {
      return .unknownExtraData(bytes: item.entry.extraLength)
    }
    let entries = tableEntries + UInt64(item.entry.tableSize)
    if entries > Self.mostTableEntries { return .tooManyEntries(entries) }
    tableEntries = entries
    return nil
  }

  private typealias ClusterRange = Range<HostCluster>

  private func readTable(
    _ entry: BitmapEntry, _ length: UInt64, _ claimed: inout [ClusterRange]
  ) async throws(ImageError) -> Result<[UInt64], BitmapProblem> {
    guard entry.table.bytes + length <= fileLength else {
      return .failure(
        .format(
          .truncated(
            structure: "bitmap table", needed: entry.table.bytes + length, available: fileLength)))
    }
    if let problem = try await claim(entry.table, length) { return .failure(problem) }
    claimed.append(clusters(entry.table, length))
    let buffer = IOBuffer(count: Int(length))
    try await storage.read(into: buffer, at: entry.table)
    var entries: [UInt64] = []
    entries.reserveCapacity(Int(entry.tableSize))
    for index in 0..<Int(entry.tableSize) {
      let raw = buffer.withBytes { $0.be64(index * 8) }
      let found = BitmapTableEntry(raw: raw)
      if let problem = found.faults(geometry, fileLength: fileLength).first {
        return .failure(bad(raw, index, problem == .beyondEnd ? .beyondLimit : problem))
      }
      if let cluster = found.cluster {
        if let problem = try await claim(cluster, geometry.clusterSize) {
          return .failure(problem)
        }
        claimed.append(clusters(cluster, geometry.clusterSize))
      }
      entries.append(raw)
    }
    return .success(entries)
  }

  private func bad(_ raw: UInt64, _ index: Int, _ problem: OffsetProblem) -> BitmapProblem {
    .format(
      .badEntry(name: "bitmap table entry", index: UInt64(index), value: raw, problem: problem))
  }

  // MARK: Clusters

  private func clusters(_ offset: HostOffset, _ length: UInt64) -> ClusterRange {
    let first = geometry.hostCluster(of: offset)
    return first..<(first + geometry.clusters(covering: length))
  }

  /// Protects clusters from being written as data, if nothing else uses them.
  private func claim(
    _ offset: HostOffset, _ length: UInt64
  ) async throws(ImageError) -> BitmapProblem? {
    let range = clusters(offset, length)
    for cluster in range {
      let isAlone = try await isAlone(cluster)
      if !isAlone {
        release([range.lowerBound..<cluster])
        return .notAlone(cluster: cluster)
      }
      metadata.tables.insert(cluster)
    }
    return nil
  }

  private func isAlone(_ cluster: HostCluster) async throws(ImageError) -> Bool {
    if metadata.contains(cluster) { return false }
    do { return try await allocator.refcount(of: cluster) == 1 } catch {
      if case .io = error { throw error }
      // What is wrong with the refcounts is for those to say who need them.
      return false
    }
  }

  private func release(_ claimed: [ClusterRange]) {
    for range in claimed {
      for cluster in range { metadata.tables.remove(cluster) }
    }
  }
}

extension BitmapDirectory.Item {
  /// Every change must show in the bitmap, or nobody may trust it any more.
  fileprivate var mustBeTracked: Bool {
    entry.flags.contains(.auto) && !entry.flags.contains(.inUse)
  }
}
