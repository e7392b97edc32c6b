import BlockCore

/// The fields of a LUKS version 1 header as they stand, none of them judged.
///
/// `info` shows them as they are. ``LUKSPartitionHeader`` checks them before an unlock.
///
/// Source: LUKS On-Disk Format Specification 1.2.3, "The partition header".
package struct LUKSFields: Equatable, Sendable {
  /// One of the eight places for a copy of the master key.
  package struct Slot: Equatable, Sendable {
    /// ``activeSlot`` or ``freeSlot``.
    package let mark: UInt32
    package let iterations: UInt32
    package let salt: [UInt8]
    /// In 512-byte sectors from the start of the header.
    package let materialSector: UInt32
    package let stripes: UInt32

    package var isActive: Bool { mark == LUKSFields.activeSlot }
  }

  /// In bytes.
  package static let length = 592
  /// "LUKS", 0xba, 0xbe: the six bytes that ``magic`` must be.
  package static let luksMagic: UInt64 = 0x4c55_4b53_babe
  static let activeSlot: UInt32 = 0x00ac_71f3
  static let freeSlot: UInt32 = 0x0000_dead
  static let digestLength = 20
  static let saltLength = 32
  static let slotCount = 8
  /// The bytes of a slot.
  static let slotLength = 48

  /// Where a slot begins, in bytes.
  static func slotPosition(_ number: Int) -> Int { 208 + number * slotLength }

  package let magic: UInt64
  package let version: UInt16
  package let cipher: String
  /// Mode and way to make initialisation vectors, such as `xts-plain64`.
  package let mode: String
  package let hash: String
  /// In 512-byte sectors from the start of the header.
  package let payloadSector: UInt32
  package let keyBytes: UInt32
  package let digest: [UInt8]
  package let digestSalt: [UInt8]
  package let digestIterations: UInt32
  package let uuid: String
  package let slots: [Slot]

  /// - Parameter bytes: ``length`` bytes at least.
  package init(parsing bytes: Span<UInt8>) {
    magic = bytes.be64(0) >> 16
    version = bytes.be16(6)
    cipher = bytes.text(8..<40)
    mode = bytes.text(40..<72)
    hash = bytes.text(72..<104)
    payloadSector = bytes.be32(104)
    keyBytes = bytes.be32(108)
    digest = bytes.copy(112..<112 + Self.digestLength)
    digestSalt = bytes.copy(132..<132 + Self.saltLength)
    digestIterations = bytes.be32(164)
    uuid = bytes.text(168..<208)
    var slots: [Slot] = []
    for number in 0..<Self.slotCount {
      let start = Self.slotPosition(number)
      slots.append(
        Slot(
          mark: bytes.be32(start), iterations: bytes.be32(start + 4),
          salt: bytes.copy(start + 8..<start + 8 + Self.saltLength),
          materialSector: bytes.be32(start + 40), stripes: bytes.be32(start + 44)))
    }
    self.slots = slots
  }
}
