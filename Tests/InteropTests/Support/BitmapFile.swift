import TestTools
import Testing

/// The persistent bitmaps of a closed image, read from its bytes by the specification's words
/// alone.
struct BitmapFile {
  struct Entry {
    let name: String
    let flags: UInt32
    let granularity: UInt64
    let table: [UInt64]
  }

  let autoclear: UInt64
  private(set) var entries: [Entry] = []
  private let bytes: [UInt8]
  private let clusterSize: Int
  private let diskSize: UInt64

  init(_ path: String) throws {
    let bytes = try contents(path)
    self.bytes = bytes
    clusterSize = 1 << Int(Self.number(bytes, 20, 4))
    diskSize = Self.number(bytes, 24, 8)
    autoclear = Self.number(bytes, 88, 8)
    var at = Int(Self.number(bytes, 100, 4))
    while Self.number(bytes, at, 4) != 0x2385_2875 {
      try #require(Self.number(bytes, at, 4) != 0, "no bitmaps extension")
      at += 8 + (Int(Self.number(bytes, at + 4, 4)) + 7) & ~7
    }
    var position = Int(Self.number(bytes, at + 24, 8))
    for _ in 0..<Self.number(bytes, at + 8, 4) {
      let extra = Int(Self.number(bytes, position + 20, 4))
      let length = Int(Self.number(bytes, position + 18, 2))
      let name = position + 24 + extra
      let table = Int(Self.number(bytes, position, 8))
      entries.append(
        Entry(
          name: String(decoding: bytes[name..<(name + length)], as: UTF8.self),
          flags: UInt32(Self.number(bytes, position + 12, 4)),
          granularity: 1 << UInt64(bytes[position + 17]),
          table: (0..<Int(Self.number(bytes, position + 8, 4))).map {
            Self.number(bytes, table + $0 * 8, 8)
          }))
      position = (name + length + 7) & ~7
    }
  }

  private static func number(_ bytes: [UInt8], _ at: Int, _ count: Int) -> UInt64 {
    bytes[at..<(at + count)].reduce(0) { $0 << 8 | UInt64($1) }
  }

  /// The ranges of guest bytes whose bits are set, neighbours joined; bits beyond the disk count.
  func setRanges(_ name: String) throws -> [Range<UInt64>] {
    let entry = try #require(entries.first { $0.name == name })
    var ranges: [Range<UInt64>] = []
    for (index, raw) in entry.table.enumerated() {
      for byte in 0..<clusterSize {
        let value = raw <= 1 ? (raw == 1 ? 0xff : 0) : bytes[Int(raw) + byte]
        for bit in 0..<8 where value >> UInt8(bit) & 1 == 1 {
          let start = UInt64((index * clusterSize + byte) * 8 + bit) * entry.granularity
          if raw == 1 && start >= diskSize { continue }
          if let last = ranges.last, last.upperBound == start {
            ranges[ranges.count - 1] = last.lowerBound..<(start + entry.granularity)
          } else {
            ranges.append(start..<(start + entry.granularity))
          }
        }
      }
    }
    return ranges
  }
}
