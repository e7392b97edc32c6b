/// An image in memory that is edited by hand: knows where the tables are, checks nothing.
package struct ImageEditor {
  package var bytes: [UInt8]

  package init(_ bytes: [UInt8]) { self.bytes = bytes }

  package func get(_ offset: Int, _ count: Int) -> UInt64 {
    bytes[offset..<offset + count].reduce(0) { $0 << 8 | UInt64($1) }
  }

  package mutating func set(_ offset: Int, _ count: Int, _ value: UInt64) {
    for index in 0..<count {
      bytes[offset + index] = UInt8(truncatingIfNeeded: value >> UInt64(8 * (count - 1 - index)))
    }
  }

  package static let offsetMask: UInt64 = 0x00ff_ffff_ffff_fe00
  package static let copied: UInt64 = 1 << 63

  package var clusterSize: Int { 1 << Int(get(20, 4)) }
  package var l1: Int { Int(get(40, 8)) }
  package var refcountTable: Int { Int(get(48, 8)) }
  package var snapshots: Int { Int(get(64, 8)) }
  package func l2(_ index: Int) -> Int { Int(get(l1 + index * 8, 8) & Self.offsetMask) }
  package func refcountBlock(_ index: Int) -> Int { Int(get(refcountTable + index * 8, 8)) }

  /// The place of the 16-bit refcount of the cluster at a host offset, in the first block.
  package func refcountPlace(_ host: Int) -> Int { refcountBlock(0) + host / clusterSize * 2 }
  package func refcount(_ host: Int) -> UInt64 { get(refcountPlace(host), 2) }
  package mutating func setRefcount(_ host: Int, _ value: UInt64) {
    set(refcountPlace(host), 2, value)
  }

  package mutating func change(_ offset: Int, _ edit: (UInt64) -> UInt64) {
    set(offset, 8, edit(get(offset, 8)))
  }

  /// The place of the first entry of an L2 table that `test` holds for.
  package func l2Entry(_ table: Int, step: Int = 8, where test: (UInt64) -> Bool) -> Int {
    stride(from: table, to: table + clusterSize, by: step).first { test(get($0, 8)) } ?? table
  }
  /// An allocated entry whose cluster has the refcount `count`.
  package func dataEntry(refcount count: UInt64 = 1, in table: Int = 0) -> Int {
    l2Entry(l2(table)) { entry in
      let host = Int(entry & Self.offsetMask)
      return entry >> 62 & 1 == 0 && entry & 1 == 0 && host > 0 && refcount(host) == count
    }
  }
  package func host(_ entry: Int) -> Int { Int(get(entry, 8) & Self.offsetMask) }

  /// The place of an extension's data; 0 if there is none.
  package func ext(_ kind: UInt64) -> Int {
    var position = Int(get(100, 4))
    while get(position, 4) != 0 {
      if get(position, 4) == kind { return position + 8 }
      position += 8 + (Int(get(position + 4, 4)) + 7) & ~7
    }
    return 0
  }
  package var bitmaps: Int { ext(0x2385_2875) }
  package var bitmapDirectory: Int { Int(get(bitmaps + 16, 8)) }
  package var bitmapTable: Int { Int(get(bitmapDirectory, 8)) }
}

extension ImageEditor {
  /// Gives an entry of the snapshot table another length of extra data; entries behind it move.
  package mutating func resizeExtraData(of number: Int, to length: Int) {
    var table: [UInt8] = []
    var place = snapshots
    for index in 0..<Int(get(60, 4)) {
      let extra = Int(get(place + 36, 4))
      let texts = Int(get(place + 12, 2) + get(place + 14, 2))
      var entry = Array(bytes[place..<place + 40 + extra + texts])
      if index == number {
        let data = entry[40..<40 + extra] + [UInt8](repeating: 0xaa, count: 4096)
        entry.replaceSubrange(40..<40 + extra, with: data.prefix(length))
        for byte in 0..<4 {
          entry[36 + byte] = UInt8(truncatingIfNeeded: length >> (24 - 8 * byte))
        }
      }
      table += entry + [UInt8](repeating: 0, count: (8 - entry.count % 8) % 8)
      place = (place + 40 + extra + texts + 7) & ~7
    }
    bytes.replaceSubrange(snapshots..<snapshots + table.count, with: table)
  }
}
