/// The first 592 bytes of a LUKS version 1 header, all fields checked.
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

  /// In bytes.
  package static let length = 592
  /// More than the largest header that QEMU writes for any cipher, 2068480 bytes.
  package static let largestArea = 16 << 20
  static let magic: [UInt8] = [0x4c, 0x55, 0x4b, 0x53, 0xba, 0xbe]
  static let version = 1
  static let digestLength = 20
  static let saltLength = 32
  static let slotCount = 8
  static let stripes = 4000
  static let activeSlot: UInt32 = 0x00ac_71f3
  static let freeSlot: UInt32 = 0x0000_dead
  /// Key material begins on multiples of this, in sectors: 4 KiB.
  static let materialAlignment = 8

  /// The key material of a slot, in bytes.
  var materialLength: Int { suite.keyLength * Self.stripes }

  /// What the fields begin at, in bytes.
  enum Field {
    static let version = 6
    static let cipher = 8
    static let mode = 40
    static let hash = 72
    static let payload = 104
    static let keyBytes = 108
    static let digest = 112
    static let digestSalt = 132
    static let digestIterations = 164
    static let uuid = 168
    static let slots = 208
    static let slotLength = 48
  }
}
