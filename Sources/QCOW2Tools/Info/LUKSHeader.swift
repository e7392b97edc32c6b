import BlockCore
import QCOW2Format

/// The header of a LUKS version 1 volume, as far as it can be shown without a key.
///
/// Source: LUKS On-Disk Format Specification 1.2.3, "The partition header".
struct LUKSHeader: Equatable {
  /// "LUKS", 0xba, 0xbe.
  static let magic: UInt64 = 0x4c55_4b53_babe
  static let length = 592

  /// One of the eight key slots.
  struct Slot: Equatable {
    let isActive: Bool
    let iterations: UInt32
    /// In 512-byte sectors from the start of the header.
    let keySector: UInt32
    let stripes: UInt32
  }

  let version: UInt16
  let cipher: String
  /// Mode and way to make initialization vectors, such as "xts-plain64".
  let mode: String
  let hash: String
  let payloadSector: UInt32
  let keyBytes: UInt32
  let masterKeyIterations: UInt32
  let uuid: String
  let slots: [Slot]

  /// - Parameter block: At least ``length`` bytes.
  init?(parsing block: IOBuffer) {
    let base = unsafe UnsafeRawPointer(block.base)
    guard unsafe base.be64(0) >> 16 == Self.magic else { return nil }
    version = unsafe base.be16(6)
    cipher = block.text(at: 8, count: 32)
    mode = block.text(at: 40, count: 32)
    hash = block.text(at: 72, count: 32)
    payloadSector = unsafe base.be32(104)
    keyBytes = unsafe base.be32(108)
    masterKeyIterations = unsafe base.be32(164)
    uuid = block.text(at: 168, count: 40)
    slots = (0..<8).map { number in
      let slot = unsafe base + 208 + number * 48
      return unsafe Slot(
        isActive: slot.be32(0) == 0x00ac_71f3, iterations: slot.be32(4), keySector: slot.be32(40),
        stripes: slot.be32(44))
    }
  }
}
