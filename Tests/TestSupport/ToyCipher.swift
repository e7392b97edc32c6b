package import QCOW2Codec

/// A cipher whose result depends on every bit of the sector number and of the position in the
/// sector.
///
/// No secret at all: whoever takes the wrong sector, or forgets to decrypt, reads garbage.
package final class ToyCipher: SectorCipher {
  package let ivBasis: IVBasis

  package init(_ basis: IVBasis) { ivBasis = basis }

  /// Mixes all bits of a sector number into all bits of the first word of the key stream.
  private static func start(_ sector: UInt64) -> UInt64 {
    var mixed = sector &+ 0x1234_5678_9abc_def1
    mixed = (mixed ^ (mixed >> 31)) &* 0x9fb2_1c65_1e98_df25
    mixed = (mixed ^ (mixed >> 28)) &* 0xbf58_476d_1ce4_e5b9
    return mixed ^ (mixed >> 32)
  }

  /// Enciphers, or deciphers, one sector.
  private static func apply(
    _ source: UnsafeRawPointer, _ target: UnsafeMutableRawPointer, _ sector: UInt64
  ) {
    var key = start(sector)
    for position in stride(from: 0, to: 512, by: 8) {
      let word = source.load(fromByteOffset: position, as: UInt64.self)
      target.storeBytes(of: word ^ key, toByteOffset: position, as: UInt64.self)
      key = key &* 0x5851_f42d_4c95_7f2d &+ sector &+ 1
    }
  }

  package func encrypt(
    _ source: UnsafeRawPointer, into target: UnsafeMutableRawPointer, count: Int,
    firstSector: UInt64
  ) {
    precondition(count % 512 == 0, "\(count) bytes are not whole sectors")
    for sector in 0..<(count / 512) {
      Self.apply(source + sector * 512, target + sector * 512, firstSector + UInt64(sector))
    }
  }

  package func decrypt(_ bytes: UnsafeMutableRawPointer, count: Int, firstSector: UInt64) {
    precondition(count % 512 == 0, "\(count) bytes are not whole sectors")
    for sector in 0..<(count / 512) {
      let start = bytes + sector * 512
      Self.apply(UnsafeRawPointer(start), start, firstSector + UInt64(sector))
    }
  }
}
