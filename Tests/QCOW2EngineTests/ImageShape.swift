import QCOW2Codec
import TestSupport
import TestTools
import Testing

/// A point of the test matrix: the geometry of an image and what it holds at first.
struct ImageShape: Sendable, CustomTestStringConvertible {
  enum Contents: String, CaseIterable, Sendable {
    case empty, prefilled, preallocatedZero, snapshot
  }
  var clusterBits: Int
  var version = 3
  var refcountOrder = 4
  var contents = Contents.empty
  /// So full that the refcount table (one cluster, 64-bit refcounts) must grow soon.
  var isNearGrowth = false
  var isLazy = false

  var features = ImageFeatures()
  /// Some of what is mapped at first is compressed.
  var hasCompressed = false
  var compressesWrites = false
  var copiesOnRead = false
  /// See ``HostFileTraits``.
  var alignment = 1
  /// The image lies on a block device, which makes ranges zero at once or not at all.
  var device: Device?
  enum Device: String, Sendable { case clearing, plain }

  static let nearGrowth = ImageShape(
    clusterBits: 9, refcountOrder: 6, contents: .prefilled, isNearGrowth: true)

  var testDescription: String {
    var parts = isNearGrowth ? ["near growth"] : []
    if isLazy { parts.append("lazy") }
    parts.append("\(1 << clusterBits) B clusters")
    parts.append("v\(version)")
    parts.append("\(1 << refcountOrder)-bit refcounts")
    parts.append("\(contents)")
    if features.isExtended { parts.append("extended L2") }
    if hasCompressed { parts.append("compressed") }
    if compressesWrites { parts.append("compressing") }
    if let backing = features.backing { parts.append("backing \(backing)") }
    if let dataFile = features.dataFile { parts.append("data file \(dataFile)") }
    if let cipher = features.cipher { parts.append("cipher by \(cipher)") }
    if copiesOnRead { parts.append("copy-on-read") }
    if alignment > 1 { parts.append("aligned") }
    if let device { parts.append("on a device, \(device)") }
    return parts.joined(separator: ", ")
  }

  private var cluster: Int { 1 << clusterBits }
  private var entrySize: Int { features.isExtended ? 16 : 8 }
  private var bytesPerTable: Int { cluster * cluster / entrySize }
  private var bytesPerSlice: Int { min(cluster, 4096) / entrySize * cluster }

  /// Odd on purpose: not a multiple of the cluster size, several L2 tables.
  var size: Int {
    if isNearGrowth { return 6 << 20 }
    return switch clusterBits {
    case 9: 5 * bytesPerTable + 3 * 512
    case 12: 2 * bytesPerTable + 37 * 512
    default: bytesPerTable + bytesPerSlice + 5 * cluster + 7 * 512
    }
  }

  /// Sectors around everything that has an edge: both ends, a slice, an L2 table.
  var regions: [Range<Int>] {
    if clusterBits == 9 { return [0..<(size / 512)] }
    let reach = clusterBits == 21 ? 2 * cluster : 6 * cluster
    let edges = [0, bytesPerSlice, bytesPerTable, size]
    var regions: [Range<Int>] = []
    for edge in edges {
      let start = max(0, edge - reach) / 512
      let end = min(size, edge + reach) / 512
      if let last = regions.last, last.upperBound >= start {
        regions[regions.count - 1] = last.lowerBound..<end
      } else {
        regions.append(start..<end)
      }
    }
    return regions
  }

  /// Fewer sectors, so that requests meet often: for crash and fault tests.
  var crashRegions: [Range<Int>] {
    if isNearGrowth { return [3800..<4100] }
    if clusterBits == 9 { return [0..<80, (size / 512 - 30)..<(size / 512)] }
    return regions.map { $0.lowerBound..<min($0.upperBound, $0.lowerBound + 48) }
  }

  var builder: ImageBuilder {
    var builder = ImageBuilder()
    builder.clusterBits = clusterBits
    builder.version = version
    builder.refcountOrder = refcountOrder
    builder.size = size
    builder.hasSnapshot = contents == .snapshot
    builder.features = features
    // In the middle of a region, of a cluster and of a subcluster.
    builder.features.backingSectors = regions[min(1, regions.count - 1)].lowerBound + 21
    builder.compatible = isLazy ? 1 : 0
    guard contents != .empty else { return builder }
    if isNearGrowth {
      for guest in 0..<3880 { builder.mappings[guest] = .data }
      return builder
    }
    for region in regions {
      let clusters = (region.lowerBound * 512 / cluster)...((region.upperBound * 512 - 1) / cluster)
      for guest in clusters where guest % 5 != 3 && (clusterBits < 21 || guest % 2 == 0) {
        if let mapping = featureMapping(guest) {
          builder.mappings[guest] = mapping
        } else if contents == .preallocatedZero {
          builder.mappings[guest] = guest % 5 == 1 ? .zero : .allocatedZero
        } else {
          builder.mappings[guest] = version == 3 && guest % 7 == 5 ? .allocatedZero : .data
        }
      }
    }
    return builder
  }

  /// What a guest cluster is mapped to in an image with features; nil: as without.
  private func featureMapping(_ guest: Int) -> ImageBuilder.Mapping? {
    if hasCompressed && guest % 3 == 1 { return .compressed }
    guard features.isExtended else { return nil }
    var random = SeededGenerator(seed: UInt64(guest))
    let allocated = UInt32(truncatingIfNeeded: random.next() & random.next())
    let zero = UInt32(truncatingIfNeeded: random.next()) & ~allocated
    switch guest % 4 {
    case 0: return .data
    case 1: return .subclusters(allocated: allocated, zero: zero, hasHost: allocated != 0)
    case 2: return .subclusters(allocated: 0, zero: zero, hasHost: guest % 8 == 2)
    default: return contents == .preallocatedZero ? .allocatedZero : .zero
    }
  }

  /// All combinations that the format allows.
  static let matrix: [ImageShape] = [9, 12, 16, 21].flatMap { bits in
    Contents.allCases.flatMap { contents -> [ImageShape] in
      let version3 = (0...6).map { order in
        ImageShape(clusterBits: bits, version: 3, refcountOrder: order, contents: contents)
      }
      let version2 = ImageShape(clusterBits: bits, version: 2, contents: contents)
      return (version3 + [version2]).filter { $0.isPossible }
    }
  }

  private var isPossible: Bool {
    // A snapshot needs refcounts of 2; version 2 has no zero flag.
    !(contents == .snapshot && refcountOrder == 0)
      && !(contents == .preallocatedZero && version == 2)
  }
}
