import TestTools

/// A qcow2 image of 64 KiB clusters, read by hand.
struct HandReadImage {
  let bytes: [UInt8]

  init(_ path: String) throws { bytes = try contents(path) }

  func number(_ offset: Int, _ count: Int) -> UInt64 {
    bytes[offset..<(offset + count)].reduce(0) { $0 << 8 | UInt64($1) }
  }

  /// The L2 entry of a guest cluster below 8192.
  func entry(_ cluster: Int) -> UInt64 {
    let l1 = Int(number(40, 8))
    let l2 = Int(number(l1, 8) & 0x00ff_ffff_ffff_fe00)
    return number(l2 + cluster * 8, 8)
  }

  /// The host offset of a plain guest cluster.
  func hostOffset(_ cluster: Int) -> Int { Int(entry(cluster) & 0x00ff_ffff_ffff_fe00) }

  /// The compressed bytes of a guest cluster, whole sectors; nil if it is not compressed.
  func compressed(_ cluster: Int) -> [UInt8]? {
    let entry = entry(cluster)
    guard entry >> 62 & 1 == 1 else { return nil }
    let shift: UInt64 = 62 - (16 - 8)
    let offset = Int(entry & (1 << shift - 1))
    let sectors = Int(entry >> shift & (1 << (62 - shift) - 1))
    let end = offset - offset % 512 + (sectors + 1) * 512
    return Array(bytes[offset..<min(end, bytes.count)])
  }

  /// What the full disk encryption header pointer points at.
  var encryptionArea: [UInt8]? {
    var offset = Int(number(100, 4))
    while number(offset, 4) != 0 {
      let length = Int(number(offset + 4, 4))
      if number(offset, 4) == 0x0537_be77 {
        let start = Int(number(offset + 8, 8))
        return Array(bytes[start..<(start + Int(number(offset + 16, 8)))])
      }
      offset += 8 + (length + 7) / 8 * 8
    }
    return nil
  }
}
