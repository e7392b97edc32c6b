import BlockCore
import QCOW2Format

/// Finds places for single clusters and for compressed data.
struct CompactFilling {
  private let survey: CompactSurvey
  private let geometry: ClusterGeometry
  private let most: Int
  private(set) var relocation: Relocation
  /// The refcounts of the new places.
  private(set) var counts: [HostCluster: UInt64] = [:]

  init(_ survey: CompactSurvey, most: Int) {
    self.survey = survey
    self.most = most
    geometry = survey.geometry
    relocation = Relocation(survey.geometry)
  }

  /// Moves what is in a range to free places, from its end on down until there are no more places.
  ///
  /// - Parameters:
  ///   - range: The clusters to empty.
  ///   - places: The free clusters, without those of `range`.
  ///   - all: Whether the move of a part is of no use.
  /// - Returns: Whether all that can be moved has a place.
  /// - Throws: ``ToolError`` if a table cannot be read.
  mutating func fill(
    from range: Range<HostCluster>, _ places: inout FreePlaces, all: Bool
  ) throws(ToolError) -> Bool {
    if places.runs.isEmpty || range.isEmpty { return range.isEmpty }
    let sources = Sources(survey, range)
    let isComplete = try pack(sources, in: range, &places)
    if all && !isComplete { return false }
    let free = Int(min(places.count, UInt64(most)))
    if all && sources.singles > free { return false }
    let skipped = max(0, sources.singles - free)
    let targets = places.takeSingles(sources.singles - skipped)
    var index = -skipped
    sources.forEachSingle { cluster in
      if index >= 0 {
        relocation.add(cluster, to: targets[index])
        counts[targets[index]] = survey.scan.check.references.count(of: cluster)
      }
      index += 1
    }
    return isComplete && skipped == 0
  }

  /// Packs the compressed data of a range anew, or the last of it that there is room for.
  ///
  /// - Returns: Whether there is room for all of it.
  private mutating func pack(
    _ sources: Sources, in range: Range<HostCluster>, _ places: inout FreePlaces
  ) throws(ToolError) -> Bool {
    guard let first = sources.firstCompressed(most: UInt64(most)) else { return true }
    let pieces = try survey.compressedData(
      where: { $0 >= first && $0 < range.upperBound }, unless: sources.isKept)
    var start = pieces.startIndex
    while start < pieces.endIndex {
      var packer = CompressedPacking(geometry, places)
      let placed = packer.pack(pieces[start...])
      guard placed < pieces.endIndex else {
        relocation.add(packer.placed)
        counts.merge(packer.counts) { first, _ in first }
        places = packer.places
        return start == pieces.startIndex && first == sources.compressedStart
      }
      // What lies furthest behind goes first: only then can the file be cut.
      start += max(1, pieces.endIndex - placed)
    }
    return false
  }
}

/// What is to be moved out of a range.
private struct Sources {
  private let survey: CompactSurvey
  private let range: Range<HostCluster>
  /// Clusters that do not move, or move as part of a structure.
  private let kept: [Range<HostCluster>]
  /// How many clusters move one by one.
  private(set) var singles = 0
  /// The first cluster with compressed data.
  private(set) var compressedStart: HostCluster?

  init(_ survey: CompactSurvey, _ range: Range<HostCluster>) {
    self.survey = survey
    self.range = range
    kept = (survey.structures + survey.fixed).sorted { $0.lowerBound < $1.lowerBound }
    var count = 0
    forEachSingle { _ in count += 1 }
    singles = count
    var start: HostCluster?
    forEach { cluster in
      if start == nil, survey.hasCompressed(cluster) { start = cluster }
    }
    compressedStart = start
  }

  /// Whether a cluster does not move by itself.
  func isKept(_ cluster: HostCluster) -> Bool {
    var (low, high) = (0, kept.count)
    while low < high {
      let middle = (low + high) / 2
      if kept[middle].upperBound <= cluster { low = middle + 1 } else { high = middle }
    }
    return low < kept.count && kept[low].contains(cluster)
  }

  func forEachSingle(_ body: (HostCluster) -> Void) {
    forEach { if !survey.hasCompressed($0) { body($0) } }
  }

  private func forEach(_ body: (HostCluster) -> Void) {
    survey.forEachUsed(in: range) { if !isKept($0) { body($0) } }
  }

  /// The first cluster of the last ones that have at most so many references to compressed data; nil if
  /// there is none.
  func firstCompressed(most: UInt64) -> HostCluster? {
    var total: UInt64 = 0
    forEach { total += survey.compressedReferences($0) }
    var found: HostCluster?
    forEach { cluster in
      let count = survey.compressedReferences(cluster)
      if found == nil, count > 0, total <= max(most, count) { found = cluster }
      total -= count
    }
    return found
  }
}

/// Puts compressed data side by side into free clusters.
///
/// Whole sectors are copied, so each piece keeps its place inside a sector; pieces that share a sector go on
/// sharing it.
struct CompressedPacking {
  private let geometry: ClusterGeometry
  /// The free runs, the longest first.
  private let runs: [Range<HostCluster>]
  /// How many of them have been opened.
  private var opened = 0
  /// What has a place.
  private(set) var placed: [CompressedMove] = []
  /// The refcounts of the clusters that are filled.
  private(set) var counts: [HostCluster: UInt64] = [:]
  /// Clusters of opened runs that nothing was put into.
  private var left: [Range<HostCluster>] = []
  /// The run that is being filled.
  private var run = HostCluster(0)..<HostCluster(0)
  /// The next free sector of the run.
  private var next: UInt64 = 0
  /// The end of the last piece in the old place.
  private var lastEnd: UInt64?

  init(_ geometry: ClusterGeometry, _ places: FreePlaces) {
    self.geometry = geometry
    runs = places.runs.sorted { ($1.count, $0.lowerBound) < ($0.count, $1.lowerBound) }
  }

  private var sectorBits: UInt64 { UInt64(geometry.clusterBits - 9) }

  /// What is still free.
  var places: FreePlaces {
    FreePlaces((runs[opened...] + left).sorted { $0.lowerBound < $1.lowerBound })
  }

  /// Finds places for pieces, in order, as long as there are some.
  ///
  /// - Returns: The index behind the last piece that has a place.
  mutating func pack(_ pieces: ArraySlice<CompressedMove>) -> Int {
    defer { closeRun() }
    for index in pieces.indices where !place(pieces[index]) {
      // The longest run is next: what does not fit there fits nowhere.
      guard openRun(), place(pieces[index]) else { return index }
    }
    return pieces.endIndex
  }

  private mutating func place(_ piece: CompressedMove) -> Bool {
    let sectors = piece.sectors
    var start = next
    if let lastEnd, sectors.lowerBound < lastEnd {
      let back = lastEnd - sectors.lowerBound
      if back <= start - run.lowerBound.number << sectorBits { start -= back }
    }
    while true {
      let end = start + UInt64(sectors.count)
      guard end <= run.upperBound.number << sectorBits else { return false }
      let clusters = HostCluster(start >> sectorBits)...HostCluster((end - 1) >> sectorBits)
      guard let full = clusters.last(where: { !takes(piece.references, $0) }) else {
        put(piece, at: start, clusters)
        next = max(next, end)
        lastEnd = end == next ? sectors.upperBound : nil
        return true
      }
      start = (full + 1).number << sectorBits
    }
  }

  /// Whether the refcount of a cluster can count so many references more.
  private func takes(_ references: UInt64, _ cluster: HostCluster) -> Bool {
    references <= geometry.maxRefcount - (counts[cluster] ?? 0)
  }

  private mutating func put(
    _ piece: CompressedMove, at sector: UInt64, _ clusters: ClosedRange<HostCluster>
  ) {
    var piece = piece
    piece.target = HostOffset(sector << 9 + piece.offset.bytes & 511)
    placed.append(piece)
    for cluster in clusters { counts[cluster, default: 0] += piece.references }
  }

  /// Goes on in the longest run that has not been opened.
  private mutating func openRun() -> Bool {
    closeRun()
    guard opened < runs.count else { return false }
    run = runs[opened]
    opened += 1
    next = run.lowerBound.number << sectorBits
    return true
  }

  /// Keeps the clusters of a run that nothing was put into.
  private mutating func closeRun() {
    let end = HostCluster((next + (1 << sectorBits) - 1) >> sectorBits)
    if end < run.upperBound { left.append(max(end, run.lowerBound)..<run.upperBound) }
    run = HostCluster(0)..<HostCluster(0)
    next = 0
    lastEnd = nil
  }
}
