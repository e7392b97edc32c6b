/// The first 592 bytes of a LUKS version 1 header: its ``LUKSFields``, all of them checked.
///
/// Source: LUKS On-Disk Format Specification 1.2.3, "The partition header".
package struct LUKSPartitionHeader: Equatable, Sendable {
  /// One of the eight places for a copy of the master key.
  package struct Slot: Equatable, Sendable {
    package var isActive: Bool
    package var iterations: UInt32
    package var salt: [UInt8]
    /// In 512-byte sectors from the start of the header.
    package var materialSector: UInt32

    /// In bytes from the start of the header.
    var materialOffset: Int { Int(materialSector) * SectorTransform.sectorSize }
  }

  package var suite: CipherSuite
  package var hash: HashAlgorithm
  /// In 512-byte sectors from the start of the header; of no meaning inside a qcow2 image.
  package var payloadSector: UInt32
  package var digest: [UInt8]
  package var digestSalt: [UInt8]
  package var digestIterations: UInt32
  package var uuid: String
  package var slots: [Slot]

  /// More than the largest header that QEMU writes for any cipher, 2068480 bytes.
  package static let largestArea = 16 << 20
  static let version = 1
  static let stripes = 4000
  /// Key material begins on multiples of this, in sectors: 4 KiB.
  static let materialAlignment = 8

  /// The key material of a slot, in bytes.
  var materialLength: Int { suite.keyLength * Self.stripes }
}
