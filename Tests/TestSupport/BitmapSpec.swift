/// A persistent bitmap for ``ImageBuilder``.
package struct BitmapSpec: Sendable {
  /// What an entry of the bitmap's table says.
  package enum Entry: Sendable {
    case ones
    /// A cluster with these bits, counted from its first one.
    case cluster([Int])
  }

  package var name: String
  /// 1: in use, 2: auto, 4: extra data compatible.
  package var flags: UInt32 = 2
  package var granularityBits: Int
  /// All others say "all zeros".
  package var entries: [Int: Entry] = [:]
  package var extraData: [UInt8] = []
  package var type: UInt8 = 1

  package init(_ name: String, granularityBits: Int, entries: [Int: Entry] = [:]) {
    self.name = name
    self.granularityBits = granularityBits
    self.entries = entries
  }
}

/// Where the bitmaps of an image under construction lie, in host clusters.
struct BitmapLayout {
  private struct Place {
    let spec: BitmapSpec
    let table: Int
    let tableSize: Int
    var clusters: [Int: Int] = [:]
  }

  /// The clusters taken in all.
  private(set) var clusters = 0
  private var directory = 0
  private var directoryBytes: [UInt8] = []
  private var places: [Place] = []
  private var clusterSize = 0

  init() {}

  init(_ bitmaps: [BitmapSpec], clusterBits: Int, size: Int, from start: Int) {
    if bitmaps.isEmpty { return }
    clusterSize = 1 << clusterBits
    var next = start
    func take(_ bytes: Int) -> Int {
      let first = next
      next += (bytes + clusterSize - 1) / clusterSize
      return first
    }
    for spec in bitmaps {
      let bits = (size + (1 << spec.granularityBits) - 1) >> spec.granularityBits
      let tableSize = ((bits + 63) / 64 * 8 + clusterSize - 1) / clusterSize
      var place = Place(spec: spec, table: take(tableSize * 8), tableSize: tableSize)
      for (index, entry) in spec.entries.sorted(by: { $0.key < $1.key }) {
        if case .cluster = entry { place.clusters[index] = take(clusterSize) }
      }
      places.append(place)
      directoryBytes += Self.entry(spec, table: place.table << clusterBits, tableSize)
    }
    directory = take(directoryBytes.count)
    clusters = next - start
  }

  private static func big(_ value: UInt64, _ count: Int) -> [UInt8] {
    (0..<count).reversed().map { UInt8(truncatingIfNeeded: value >> UInt64($0 * 8)) }
  }

  private static func entry(_ spec: BitmapSpec, table: Int, _ tableSize: Int) -> [UInt8] {
    let name = Array(spec.name.utf8)
    var entry = big(UInt64(table), 8) + big(UInt64(tableSize), 4) + big(UInt64(spec.flags), 4)
    entry += [spec.type, UInt8(spec.granularityBits)]
    entry += big(UInt64(name.count), 2) + big(UInt64(spec.extraData.count), 4)
    entry += spec.extraData + name
    while entry.count % 8 != 0 { entry.append(0) }
    return entry
  }

  func write(to bytes: ImageBytes, extensionAt position: Int) {
    bytes.put32(0x2385_2875, position)
    bytes.put32(24, position + 4)
    bytes.put32(UInt32(places.count), position + 8)
    bytes.put64(UInt64(directoryBytes.count), position + 16)
    bytes.put64(UInt64(directory * clusterSize), position + 24)
    bytes.put(directoryBytes, directory * clusterSize)
    for place in places { write(place, to: bytes) }
  }

  private func write(_ place: Place, to bytes: ImageBytes) {
    for (index, entry) in place.spec.entries {
      var raw: UInt64 = 1
      if case .cluster(let bits) = entry, let cluster = place.clusters[index] {
        raw = UInt64(cluster * clusterSize)
        for bit in bits {
          let at = cluster * clusterSize + bit / 8
          let old = bytes.base.load(fromByteOffset: at, as: UInt8.self)
          bytes.put([old | 1 << UInt8(bit % 8)], at)
        }
      }
      bytes.put64(raw, place.table * clusterSize + index * 8)
    }
  }
}
