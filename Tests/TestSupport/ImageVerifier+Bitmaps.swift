/// A persistent bitmap as an image has it.
package struct FoundBitmap {
  package let name: String
  package let flags: UInt32
  package let granularityBits: Int
  let table: Int
  package let tableSize: Int

  /// Where the table starts in the file.
  package var tableOffset: UInt64 { UInt64(table) }
}

extension ImageVerifier {
  /// The bitmaps of an image whose autoclear bit 0 says that they are valid; nil if it does not.
  package var bitmaps: [FoundBitmap]? {
    guard bytes.be32(4) >= 3, bytes.be64(88) & 1 == 1, let place = bitmapsExtension else {
      return nil
    }
    var at = Int(bytes.be64(place + 16))
    return (0..<bytes.be32(place)).map { _ in
      let name = at + 24 + Int(bytes.be32(at + 20))
      let length = Int(bytes.be16(at + 18))
      let text = String(
        decoding: UnsafeRawBufferPointer(start: bytes.base + name, count: length), as: UTF8.self)
      defer { at = (name + length + 7) & ~7 }
      return FoundBitmap(
        name: text, flags: bytes.be32(at + 12), granularityBits: Int(byte(at + 17)),
        table: Int(bytes.be64(at)), tableSize: Int(bytes.be32(at + 8)))
    }
  }

  private func byte(_ at: Int) -> UInt8 { bytes.base.load(fromByteOffset: at, as: UInt8.self) }

  private var bitmapsExtension: Int? {
    var at = Int(bytes.be32(100))
    while bytes.be32(at) != 0 {
      if bytes.be32(at) == 0x2385_2875 { return at + 8 }
      at += 8 + (Int(bytes.be32(at + 4)) + 7) & ~7
    }
    return nil
  }

  /// Whether the bit is set that covers a guest sector.
  package func isSet(_ bitmap: FoundBitmap, sector: Int) -> Bool {
    let bit = (sector * 512) >> bitmap.granularityBits
    let raw = bytes.be64(bitmap.table + bit / (clusterSize * 8) * 8)
    if raw <= 1 { return raw == 1 }
    return byte(Int(raw) + bit / 8 % clusterSize) >> UInt8(bit % 8) & 1 == 1
  }

  /// Counts what bitmaps refer to, as owned by them alone.
  func ownBitmaps() {
    guard let bitmaps, let place = bitmapsExtension else { return }
    own("bitmap directory", Int(bytes.be64(place + 16)), Int(bytes.be64(place + 8)))
    for bitmap in bitmaps {
      own("table of bitmap \(bitmap.name)", bitmap.table, bitmap.tableSize * 8)
      for index in 0..<bitmap.tableSize {
        let raw = bytes.be64(bitmap.table + index * 8)
        if raw <= 1 { continue }
        if raw & 0xff00_0000_0000_01ff != 0 {
          fail("bitmap \(bitmap.name), entry \(index) is \(String(raw, radix: 16))")
        } else {
          own("bitmap \(bitmap.name), cluster \(index)", Int(raw), clusterSize)
        }
      }
    }
  }
}
